def gray_code(bits):
    return [format(n, "b").zfill(bits) for n in range(2 ** bits)]
