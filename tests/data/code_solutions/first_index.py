def first_index(numbers, value):
    return numbers.index(value) if value in numbers else -1
