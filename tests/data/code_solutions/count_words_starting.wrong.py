def count_words_starting(sentence, letter):
    return sentence.lower().count(letter)
