def pad_left(number, width):
    return str(number).zfill(width)
