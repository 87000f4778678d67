def flip_bits(text):
    return "".join("1" if bit == "0" else "0" for bit in text)
