def count_pairs(numbers, total):
    known = set(numbers)
    return sum(total - number in known for number in numbers) // 2
