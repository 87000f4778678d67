def minutes_between(start, end):
    hours = (int(end[:2]) - int(start[:2])) % 24
    return hours * 60 + int(end[3:]) - int(start[3:])
