def repeat_text(text, times):
    return text * times
