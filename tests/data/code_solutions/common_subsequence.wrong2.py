def common_subsequence(left, right):
    if not left or not right:
        return 0
    if left[0] == right[0]:
        return 1 + common_subsequence(left[1:], right[1:])
    return max(common_subsequence(left[1:], right), common_subsequence(left, right[1:]))
