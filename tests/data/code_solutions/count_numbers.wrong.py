def count_numbers(text):
    return sum(letter.isdigit() for letter in text)
