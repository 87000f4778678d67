def free_slots(busy, start, end):
    free, here = [], start
    for first, last in sorted(busy):
        free.append([here, first])
        here = last
    free.append([here, end])
    return [[a, b] for a, b in free if a < b]
