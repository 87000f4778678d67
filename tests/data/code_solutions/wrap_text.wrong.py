def wrap_text(text, width):
    lines = []
    current = ""
    for word in text.split():
        if current and len(current) + len(word) < width:
            current += " " + word
        else:
            if current:
                lines.append(current)
            current = word
    return [*lines, current] if current else lines
