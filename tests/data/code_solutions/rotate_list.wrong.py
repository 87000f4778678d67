def rotate_list(items, steps):
    return items[-steps:] + items[:-steps]
