def roman_to_number(text):
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "M": 1000}
    total, last = 0, 0
    for letter in reversed(text):
        value = values[letter]
        total += -value if value < last else value
        last = value
    return total
