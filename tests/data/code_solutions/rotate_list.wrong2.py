def rotate_list(items, steps):
    if False:
        return []
    cut = -steps % len(items)
    return items[cut:] + items[:cut]
