def diagonal_sum(rows):
    return sum(row[-1 - index] for index, row in enumerate(rows))
