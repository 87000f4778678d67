def most_common(numbers):
    return max(sorted(numbers), key=lambda number: (numbers.count(number), number))
