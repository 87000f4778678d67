def value_range(numbers):
    return max(numbers) - min(numbers)
