def rotated_minimum(numbers):
    for index in range(len(numbers)):
        if numbers[index] > numbers[index + 1]:
            return index + 1
    return 0
