def count_pairs(numbers, total):
    seen, count = {}, 0
    for number in numbers:
        count += seen.get(total - number, 0)
        seen[number] = seen.get(number, 0) + 1
    return count
