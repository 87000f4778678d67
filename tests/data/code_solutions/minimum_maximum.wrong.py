def minimum_maximum(numbers):
    low = high = 0
    for number in numbers:
        low, high = min(low, number), max(high, number)
    return [low, high] if numbers else []
