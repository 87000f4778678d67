def stairs_ways(steps):
    if steps < 2:
        return 1
    return stairs_ways(steps - 1) + stairs_ways(steps - 2)
