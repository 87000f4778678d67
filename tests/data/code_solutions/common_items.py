def common_items(left, right):
    return [item for item in dict.fromkeys(right) if item in left]
