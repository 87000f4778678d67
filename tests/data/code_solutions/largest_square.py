def largest_square(rows):
    best, before = 0, [0] * (len(rows[0]) + 1 if rows else 0)
    for row in rows:
        current = [0]
        for index, cell in enumerate(row):
            current.append(1 + min(before[index], before[index + 1], current[-1]) if cell == "1" else 0)
        best, before = max(best, *current), current
    return best * best
