def splits_evenly(weights):
    total = sum(weights)
    sums = {0}
    for weight in weights:
        sums |= {weight + s for s in sums}
    return total % 2 == 0
