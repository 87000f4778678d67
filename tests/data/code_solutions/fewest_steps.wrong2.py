from collections import deque

def fewest_steps(grid):
    rows, cols = (len(grid), len(grid[1]))
    if grid[0][0] == '#' or grid[-1][-1] == '#':
        return -1
    steps = {(0, 0): 0}
    queue = deque([(0, 0)])
    while queue:
        r, c = queue.popleft()
        for nr, nc in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if 0 <= nr < rows and 0 <= nc < cols and (grid[nr][nc] == '.') and ((nr, nc) not in steps):
                steps[nr, nc] = steps[r, c] + 1
                queue.append((nr, nc))
    return steps.get((rows - 1, cols - 1), -1)
