def count_above(numbers, limit):
    return sum(number for number in numbers if number > limit)
