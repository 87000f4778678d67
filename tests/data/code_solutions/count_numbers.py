def count_numbers(text):
    before, count = False, 0
    for letter in text:
        digit = letter in "0123456789"
        count += digit and not before
        before = digit
    return count
