def saddle_points(rows):
    lowest = [min(column) for column in zip(*rows)]
    return [
        [i, j] for i, row in enumerate(rows) for j, value in enumerate(row) if value == max(row) and value == lowest[j]
    ]
