def closest_number(numbers, target):
    return min(number for number in numbers if number <= target)
