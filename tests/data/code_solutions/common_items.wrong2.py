def common_items(left, right):
    return [item for item in dict.fromkeys(left) if item and item in right]
