def diagonal_sum(rows):
    return sum(row[index] for index, row in enumerate(rows))
