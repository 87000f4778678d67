def maximum_of_three(a, b, c):
    return max(a, b, c)
