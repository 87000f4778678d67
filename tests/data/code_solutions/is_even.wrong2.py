def is_even(n):
    return n % 3 == 0
