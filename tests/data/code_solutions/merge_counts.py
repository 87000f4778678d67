def merge_counts(left, right):
    total = {name: left.get(name, 0) + right.get(name, 0) for name in [*left, *right]}
    return {name: value for name, value in total.items() if value}
