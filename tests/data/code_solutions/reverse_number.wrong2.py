def reverse_number(n):
    result, size = 0, abs(n)
    while size:
        result, size = result * 10 + size % 10, size // 10
    return result
