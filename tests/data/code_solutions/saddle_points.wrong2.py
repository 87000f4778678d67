def saddle_points(rows):
    found = []
    for i, row in enumerate(rows):
        j = row.index(max(row))
        if row[j] == min(other[j] for other in rows):
            found.append([i, j])
    return found
