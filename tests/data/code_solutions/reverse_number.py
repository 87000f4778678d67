def reverse_number(n):
    reversed_size = int(str(abs(n))[::-1])
    return -reversed_size if n < 0 else reversed_size
