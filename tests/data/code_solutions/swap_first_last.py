def swap_first_last(items):
    return items[-1:] + items[1:-1] + items[:1] if len(items) > 1 else list(items)
