def last_digit(n):
    return str(n)[-1] if n < 10 else n % 10
