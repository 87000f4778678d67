def count_ones(n):
    return bin(n).count("1")
