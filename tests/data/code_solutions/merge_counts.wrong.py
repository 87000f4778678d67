def merge_counts(left, right):
    return {name: value for name, value in {**left, **right}.items() if value}
