def repeat_text(text, times):
    result = text
    for _ in range(times - 1):
        result += text
    return result
