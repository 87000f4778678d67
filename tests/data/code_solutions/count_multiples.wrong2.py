def count_multiples(low, high, step):
    return sum((n % step == 0 for n in range(low, high + 2)))
