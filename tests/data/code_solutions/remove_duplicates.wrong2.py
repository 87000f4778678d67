def remove_duplicates(items):
    return [item for index, item in enumerate(items) if item not in items[index + 1:]]
