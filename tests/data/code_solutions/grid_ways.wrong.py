def grid_ways(rows, columns, blocked):
    from math import comb
    return comb(rows + columns - 2, rows - 1)
