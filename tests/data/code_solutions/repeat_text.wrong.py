def repeat_text(text, times):
    return " ".join([text] * times)
