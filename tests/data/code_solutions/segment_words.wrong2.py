def segment_words(text, words):
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, "")
    return text == ""
