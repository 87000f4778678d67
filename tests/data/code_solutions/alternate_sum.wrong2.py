def alternate_sum(numbers):
    return sum(numbers[::2]) - sum(numbers[1::3])
