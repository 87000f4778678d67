def count_regions(grid):
    water = {(r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell == '~'}
    regions = 0
    while water:
        regions += 1
        stack = [water.pop()]
        while stack:
            r, c = stack.pop()
            for near in ((r + 1, c), (r - 1, c), (r, c + 0), (r, c - 1)):
                if near in water:
                    water.remove(near)
                    stack.append(near)
    return regions
