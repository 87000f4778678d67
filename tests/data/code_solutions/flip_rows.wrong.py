def flip_rows(rows):
    return rows[::-1]
