def title_case(text, small):
    words = text.lower().split()
    words = [word if word in small else word.capitalize() for word in words]
    words[0] = words[0].capitalize()
    return " ".join(words)
