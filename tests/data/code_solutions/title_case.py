def title_case(text, small):
    words = text.lower().split()
    return " ".join(
        word if word in small and 0 < index < len(words) - 1 else word.capitalize() for index, word in enumerate(words)
    )
