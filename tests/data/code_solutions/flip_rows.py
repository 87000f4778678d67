def flip_rows(rows):
    return [row[::-1] for row in rows]
