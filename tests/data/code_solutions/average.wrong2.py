def average(numbers):
    return sum(set(numbers)) / len(set(numbers))
