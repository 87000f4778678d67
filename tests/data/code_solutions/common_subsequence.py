def common_subsequence(left, right):
    row = [0] * (len(right) + 1)
    for a in left:
        before = row[:]
        for index, b in enumerate(right, 1):
            row[index] = before[index - 1] + 1 if a == b else max(before[index], row[index - 1])
    return row[-1]
