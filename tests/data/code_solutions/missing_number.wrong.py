def missing_number(numbers):
    for i in range(len(numbers)):
        if i not in numbers:
            return i
    return None
