def all_equal(items):
    return len(set(items)) == 1
