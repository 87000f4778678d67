def vowel_positions(text):
    return [index for index, letter in enumerate(text) if letter in "aeiouAEIOU"]
