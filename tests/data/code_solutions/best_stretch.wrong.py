def best_stretch(changes):
    best = [0, 0, 0]
    total = start = 0
    for i, change in enumerate(changes):
        total += change
        if total > best[0]:
            best = [total, start, i]
        if total < 0:
            total, start = 0, i + 1
    return best
