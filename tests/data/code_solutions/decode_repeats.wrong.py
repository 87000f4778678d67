def decode_repeats(text):
    stack, number, current = [], 0, ""
    for letter in text:
        if letter.isdigit():
            number = int(letter)
        elif letter == "[":
            stack.append((current, number))
            current = ""
        elif letter == "]":
            before, times = stack.pop()
            current = before + current * times
        else:
            current += letter
    return current
