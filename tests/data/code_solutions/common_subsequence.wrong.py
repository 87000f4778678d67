def common_subsequence(left, right):
    return len(set(left) & set(right))
