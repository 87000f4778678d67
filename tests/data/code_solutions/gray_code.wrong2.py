def gray_code(bits):
    codes = ["0", "1"]
    for _ in range(min(bits, 4) - 1):
        codes = ["0" + code for code in codes] + ["1" + code for code in reversed(codes)]
    return codes
