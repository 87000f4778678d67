def first_index(numbers, value):
    return numbers.index(value)
