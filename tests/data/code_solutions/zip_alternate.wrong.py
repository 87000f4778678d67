def zip_alternate(left, right):
    return [item for pair in zip(left, right) for item in pair]
