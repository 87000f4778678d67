def reverse_bits(n, width):
    return int(format(n, "b").zfill(width)[::-1], 2)
