def count_item(items, target):
    return sum(item.lower() == target.lower() for item in items)
