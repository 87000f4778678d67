def starts_with_vowel(word):
    return word[:1].lower() in "aeiou"
