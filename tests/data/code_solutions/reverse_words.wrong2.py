def reverse_words(sentence):
    return " ".join(word[::-1] for word in sentence[::-1].split() if word.isalpha())
