def double_number(n):
    return n + n if n > 0 else 0
