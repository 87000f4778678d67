def count_words_starting(sentence, letter):
    return sum(word[0].lower() == letter for word in sentence.split(" "))
