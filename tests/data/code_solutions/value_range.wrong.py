def value_range(numbers):
    return abs(numbers[0] - numbers[-1]) if numbers else 0
