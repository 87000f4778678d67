def elevator_travel(start, calls):
    return abs(calls[0] - start) + sum(abs(a - b) for a, b in zip(calls, calls[1:]))
