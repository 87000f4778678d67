def common_items(left, right):
    return [item for item in left if item in right]
