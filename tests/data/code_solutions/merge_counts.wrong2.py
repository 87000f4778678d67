def merge_counts(left, right):
    return {name: left.get(name, 0) + right.get(name, 0) for name in [*left, *right] if left.get(name, 0) + right.get(name, 0) > 0}
