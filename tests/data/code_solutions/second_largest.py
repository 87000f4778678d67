def second_largest(numbers):
    values = sorted(set(numbers))
    return values[-2] if len(values) > 1 else None
