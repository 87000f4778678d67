def row_sums(rows):
    return [sum(column) for column in zip(*rows)]
