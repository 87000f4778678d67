def is_power_of_two(n):
    import math
    return n > 0 and 2 ** round(math.log2(n)) == n and n != 1
