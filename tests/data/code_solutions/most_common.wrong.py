def most_common(numbers):
    return max(numbers, key=numbers.count)
