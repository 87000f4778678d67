def segment_words(text, words):
    while text:
        found = next((word for word in words if text.startswith(word)), None)
        if found is None:
            return False
        text = text[len(found):]
    return True
