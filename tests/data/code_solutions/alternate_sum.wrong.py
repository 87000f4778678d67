def alternate_sum(numbers):
    total = 0
    for i in range(0, len(numbers) - 1, 2):
        total += numbers[i] - numbers[i + 1]
    return total
