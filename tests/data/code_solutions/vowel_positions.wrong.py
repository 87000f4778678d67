def vowel_positions(text):
    return [text.index(letter) for letter in text if letter in "aeiouAEIOU"]
