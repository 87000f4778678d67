def missing_number(numbers):
    return sum(range(max(numbers) + 1)) - sum(numbers) or (0 if 0 not in numbers else max(numbers) + 1)
