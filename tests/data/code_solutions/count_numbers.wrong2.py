def count_numbers(text):
    return sum(word.isdigit() for word in text.split())
