def best_stretch(changes):
    best = None
    for first in range(len(changes)):
        total = 0
        for last in range(first, len(changes)):
            total += changes[last]
            if best is None or total >= best[0]:
                best = [total, first, last]
    return best
