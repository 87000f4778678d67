def maximum_of_three(a, b, c):
    best = 0
    for value in (a, b, c):
        if value > best:
            best = value
    return best
