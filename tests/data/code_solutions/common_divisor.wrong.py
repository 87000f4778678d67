def common_divisor(numbers):
    for divisor in range(min(numbers), 0, -1):
        if all(number % divisor == 0 for number in numbers):
            return divisor
    return 0
