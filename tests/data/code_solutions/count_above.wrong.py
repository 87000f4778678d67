def count_above(numbers, limit):
    return sum(number >= limit for number in numbers)
