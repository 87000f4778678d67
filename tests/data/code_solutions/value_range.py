def value_range(numbers):
    return max(numbers) - min(numbers) if numbers else 0
