def square_all(numbers):
    return [n * abs(n) for n in numbers]
