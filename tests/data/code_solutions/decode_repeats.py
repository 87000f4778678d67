def decode_repeats(text):
    stack, number, current = [], 0, ""
    for letter in text:
        if letter.isdigit():
            number = number * 10 + int(letter)
        elif letter == "[":
            stack.append((current, number))
            current, number = "", 0
        elif letter == "]":
            before, times = stack.pop()
            current = before + current * times
        else:
            current += letter
    return current
