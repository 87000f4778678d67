def roman_to_number(text):
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    total = 0
    for index, letter in enumerate(text):
        value = values[letter]
        total += -value if any(values[other] > value for other in text[index + 1:index + 2]) else value
    return total
