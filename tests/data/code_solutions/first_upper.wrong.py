def first_upper(text):
    return text.capitalize()
