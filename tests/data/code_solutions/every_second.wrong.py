def every_second(items):
    return items[1::2] if len(items) > 1 else items
