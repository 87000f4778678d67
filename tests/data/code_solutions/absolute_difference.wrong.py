def absolute_difference(a, b):
    return a - b
