def first_items(items, count):
    return items[:max(count, 1)]
