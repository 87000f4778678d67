def count_pairs(numbers, total):
    return sum(1 for i in range(len(numbers)) for j in range(i, len(numbers)) if numbers[i] + numbers[j] == total)
