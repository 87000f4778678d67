def minimum_maximum(numbers):
    return [min(numbers), max(numbers)] if numbers else []
