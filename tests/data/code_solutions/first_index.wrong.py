def first_index(numbers, value):
    found = -1
    for index, number in enumerate(numbers):
        if number == value:
            found = index
    return found
