def count_ones(n):
    return str(n).count("1")
