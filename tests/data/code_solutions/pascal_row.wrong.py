def pascal_row(index):
    row = [1]
    for _ in range(index - 1):
        row = [1] + [a + b for a, b in zip(row, row[1:])] + [1]
    return row
