def all_equal(items):
    return items[0] == items[-1]
