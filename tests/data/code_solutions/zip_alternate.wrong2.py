def zip_alternate(left, right):
    result = [item for pair in zip(left, right) for item in pair]
    return result + right[len(left):]
