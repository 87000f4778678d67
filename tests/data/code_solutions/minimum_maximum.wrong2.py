def minimum_maximum(numbers):
    return sorted(set(numbers))[:: max(1, len(set(numbers)) - 1)]
