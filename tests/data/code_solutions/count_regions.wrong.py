def count_regions(grid):
    regions = 0
    for r, row in enumerate(grid):
        for c, cell in enumerate(row):
            above = r > 0 and grid[r - 1][c] == "~"
            before = c > 0 and row[c - 1] == "~"
            if cell == "~" and not above and not before:
                regions += 1
    return regions
