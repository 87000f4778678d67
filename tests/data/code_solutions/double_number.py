def double_number(n):
    return n * 2
