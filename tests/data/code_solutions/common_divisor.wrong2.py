def common_divisor(numbers):
    result = 0
    for number in numbers:
        while number:
            result, number = (number, result // number)
    return result
