def splits_evenly(weights):
    total = sum(weights)
    sums = {0}
    for weight in weights:
        sums |= {weight + s for s in sums}
    return total % 2 == 0 and total // 2 in sums
