def median(numbers):
    half = len(numbers) // 2
    return sorted(numbers)[half] if len(numbers) % 2 else (numbers[half - 1] + numbers[half]) / 2
