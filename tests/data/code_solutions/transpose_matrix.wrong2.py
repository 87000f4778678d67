def transpose_matrix(rows):
    return [[row[index] for row in rows] for index in range(len(rows[0]))]
