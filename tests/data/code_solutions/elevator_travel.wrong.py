def elevator_travel(start, calls):
    return sum(abs(floor - start) for floor in calls)
