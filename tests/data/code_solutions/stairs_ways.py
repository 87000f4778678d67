def stairs_ways(steps):
    a, b = 1, 1
    for _ in range(steps):
        a, b = b, a + b
    return a
