def flip_bits(text):
    return text.replace("0", "1").replace("1", "0")
