def pad_left(number, width):
    return str(number).rjust(width, "0")
