def longest_rising_run(numbers):
    best = current = 0
    previous = None
    for number in numbers:
        current = current + 1 if previous is not None and number > previous else 1
        best = max(best, current)
        previous = number
    return best
