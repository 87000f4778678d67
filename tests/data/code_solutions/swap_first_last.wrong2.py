def swap_first_last(items):
    items[0], items[-1] = items[-1], items[0]
    return items
