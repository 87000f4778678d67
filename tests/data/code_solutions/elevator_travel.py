def elevator_travel(start, calls):
    travelled = 0
    for floor in calls:
        travelled += abs(floor - start)
        start = floor
    return travelled
