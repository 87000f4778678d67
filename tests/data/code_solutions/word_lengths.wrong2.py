def word_lengths(words):
    return [len(word.strip()) for word in words]
