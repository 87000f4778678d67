def remove_repeats(text):
    return "".join(dict.fromkeys(text))
