def fewest_steps(grid):
    rows, cols = len(grid), len(grid[0])
    far = rows * cols
    steps = [[far] * cols for _ in range(rows)]
    for r in range(rows):
        for c in range(cols):
            if grid[r][c] == "#":
                continue
            if r == c == 0:
                steps[r][c] = 0
            if r > 0:
                steps[r][c] = min(steps[r][c], steps[r - 1][c] + 1)
            if c > 0:
                steps[r][c] = min(steps[r][c], steps[r][c - 1] + 1)
    return steps[-1][-1] if steps[-1][-1] < far else -1
