def longest_rising_run(numbers):
    lengths = []
    for i, number in enumerate(numbers):
        lengths.append(1 + max((lengths[j] for j in range(i) if numbers[j] < number), default=0))
    return max(lengths, default=1)
