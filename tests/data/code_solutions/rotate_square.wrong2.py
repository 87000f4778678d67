def rotate_square(rows):
    size = len(rows[0])
    return [[rows[size - 1 - j][i] for j in range(size)] for i in range(size)]
