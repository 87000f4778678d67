def count_item(items, target):
    return len([item for item in items if target in item])
