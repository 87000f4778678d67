def first_items(items, count):
    return items[:count]
