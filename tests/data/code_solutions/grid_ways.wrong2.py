def grid_ways(rows, columns, blocked):
    ways = [[1] * columns for _ in range(rows)]
    for row in range(1, rows):
        for column in range(1, columns):
            ways[row][column] = 0 if [row, column] in blocked else ways[row - 1][column] + ways[row][column - 1]
    return ways[-1][-1]
