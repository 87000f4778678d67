def skyline(buildings):
    outline = []
    for left, right, height in sorted(buildings):
        outline += [[left, height], [right, 0]]
    return outline
