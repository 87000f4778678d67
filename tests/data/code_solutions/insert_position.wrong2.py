def insert_position(numbers, value):
    low, high = (-1, len(numbers))
    while low < high:
        middle = (low + high) // 2
        if numbers[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low
