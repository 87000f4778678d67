def single_number(numbers):
    return 2 * sum({abs(number) for number in numbers}) - sum(numbers)
