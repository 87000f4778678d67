def free_slots(busy, start, end):
    free, here = [], start
    for first, last in sorted(busy):
        if first > here:
            free.append([here, first])
        here = max(here, last)
    if here < end:
        free.append([here, end])
    return free
