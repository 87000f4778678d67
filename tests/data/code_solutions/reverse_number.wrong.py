def reverse_number(n):
    return int(str(n)[::-1])
