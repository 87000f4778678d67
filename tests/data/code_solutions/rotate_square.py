def rotate_square(rows):
    return [list(column) for column in zip(*rows[::-1])]
