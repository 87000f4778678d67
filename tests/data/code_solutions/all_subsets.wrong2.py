def all_subsets(items):
    subsets = [[]]
    for item in sorted(items):
        subsets += [subset + [item] for subset in subsets]
    return subsets
