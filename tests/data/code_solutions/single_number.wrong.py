def single_number(numbers):
    for left, right in zip(numbers, numbers[1:]):
        if left != right:
            return left
    return numbers[-1]
