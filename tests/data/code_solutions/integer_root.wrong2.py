def integer_root(n):
    return int(n ** 0.5)
