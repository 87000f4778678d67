def remove_repeats(text):
    return "".join(letter for index, letter in enumerate(text) if index == 0 or text[index - 1] != letter)
