def remove_repeats(text):
    result = ""
    for left, right in zip(text, text[1:]):
        if left != right:
            result += left
    return result + text[-1]
