def free_slots(busy, start, end):
    free, here = [], start
    for first, last in sorted(busy):
        if first > here:
            free.append([here, min(first, end)])
        here = max(here, last)
        if here >= end:
            break
    if here < end:
        free.append([here, end])
    return [[a, b] for a, b in free if a < b]
