def next_generation(grid):
    alive = {(r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell == 'o'}

    def lives(r, c):
        near = sum(((i, j) in alive for i in (r - 1, r, r + 1) for j in (c - 1, c, c + 1))) - ((r, c) in alive)
        return near == 3
    return [''.join(('o' if lives(r, c) else '.' for c in range(len(row)))) for r, row in enumerate(grid)]
