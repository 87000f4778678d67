def shout(text):
    return text[0].upper() + text[1:].upper() + "!"
