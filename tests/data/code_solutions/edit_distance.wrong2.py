def edit_distance(source, target):
    row = list(range(len(target) + 1))
    for i, a in enumerate(source, 1):
        diagonal, row[1] = (row[0], i)
        for j, b in enumerate(target, 1):
            cost = min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
            diagonal, row[j] = (row[j], cost)
    return row[-1]
