def reverse_bits(n, width):
    return int(bin(n)[:1:-1], 2)
