def pad_left(number, width):
    sign = "-" if number < 0 else ""
    return sign + str(abs(number)).zfill(width)
