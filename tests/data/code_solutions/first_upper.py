def first_upper(text):
    return text[:1].upper() + text[1:]
