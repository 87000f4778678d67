def flip_bits(text):
    return bin(int(text, 2) ^ (2 ** len(text) - 1))[2:].rjust(1, "0")
