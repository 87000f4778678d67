def second_largest(numbers):
    values = sorted(set(numbers))
    return values[-2]
