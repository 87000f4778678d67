def all_subsets(items):
    return [items[i:j] for i in range(len(items)) for j in range(i + 1, len(items) + 1)] + [[]]
