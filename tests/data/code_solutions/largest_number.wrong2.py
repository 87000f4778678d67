def largest_number(numbers):
    return max(numbers)
