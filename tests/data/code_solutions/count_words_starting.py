def count_words_starting(sentence, letter):
    return sum(word.lower().startswith(letter.lower()) for word in sentence.split())
