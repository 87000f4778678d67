def all_equal(items):
    return all(item == items[0] for item in items)
