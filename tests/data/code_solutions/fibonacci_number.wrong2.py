def fibonacci_number(n):
    if n < 2:
        return n
    return fibonacci_number(n - 1) + fibonacci_number(n - 2)
