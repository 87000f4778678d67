def saddle_points(rows):
    highest = [max(column) for column in zip(*rows)]
    return [
        [i, j] for i, row in enumerate(rows) for j, value in enumerate(row) if value == min(row) and value == highest[j]
    ]
