def most_common(numbers):
    return min(numbers, key=lambda number: (-numbers.count(number), number))
