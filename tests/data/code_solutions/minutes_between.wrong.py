def minutes_between(start, end):
    first, last = (int(clock[:2]) * 60 + int(clock[3:]) for clock in (start, end))
    return abs(last - first)
