def largest_number(numbers):
    best = 0
    for number in numbers:
        best = max(best, number)
    return best
