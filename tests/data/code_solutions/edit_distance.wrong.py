def edit_distance(source, target):
    changed = sum(a != b for a, b in zip(source, target, strict=False))
    return changed + abs(len(source) - len(target))
