def integer_root(n):
    return round(n ** 0.5)
