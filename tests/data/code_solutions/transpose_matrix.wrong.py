def transpose_matrix(rows):
    return [[rows[j][i] for j in range(len(rows))] for i in range(len(rows))]
