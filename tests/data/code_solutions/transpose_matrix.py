def transpose_matrix(rows):
    return [list(column) for column in zip(*rows, strict=True)]
