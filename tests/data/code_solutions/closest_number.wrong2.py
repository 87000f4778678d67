def closest_number(numbers, target):
    return min(numbers, key=lambda number: abs(number - target))
