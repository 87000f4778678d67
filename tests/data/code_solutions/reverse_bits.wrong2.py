def reverse_bits(n, width):
    return int(format(n, "08b")[::-1], 2)
