def largest_square(rows):
    best = 0
    for i in range(len(rows)):
        for j in range(len(rows[i])):
            size = 0
            while i + size < len(rows) and j + size < len(rows[i]) and rows[i + size][j + size] == "1":
                size += 1
            best = max(best, size)
    return best * best
