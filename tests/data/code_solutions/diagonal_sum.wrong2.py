def diagonal_sum(rows):
    return rows[0][0] + sum(rows[index][index] for index in range(1, len(rows)))
