def first_upper(text):
    return text[0].upper() + text[1:]
