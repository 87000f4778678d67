def skyline(buildings):
    outline, before, starts = [], 0, {building[0] for building in buildings}
    for x in sorted({edge for building in buildings for edge in building[:2]}):
        height = max((tall for left, right, tall in buildings if left <= x < right), default=0)
        if height != before or x in starts:
            outline.append([x, height])
        before = height
    return outline
