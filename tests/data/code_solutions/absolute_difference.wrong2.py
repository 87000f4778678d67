def absolute_difference(a, b):
    return abs(abs(a) - abs(b))
