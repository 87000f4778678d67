def title_case(text, small):
    return " ".join(word if word in small else word.capitalize() for word in text.lower().split())
