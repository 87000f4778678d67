def grid_ways(rows, columns, blocked):
    walls = {(row, column) for row, column in blocked}
    ways = [0] * columns
    for row in range(rows):
        for column in range(columns):
            if (row, column) in walls:
                ways[column] = 0
            elif row == column == 0:
                ways[0] = 1
            elif column:
                ways[column] += ways[column - 1]
    return ways[-1]
