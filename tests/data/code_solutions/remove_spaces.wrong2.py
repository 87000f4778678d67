def remove_spaces(text):
    return "".join(text.split())
