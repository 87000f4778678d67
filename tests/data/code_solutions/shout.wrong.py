def shout(text):
    return text.capitalize() + "!"
