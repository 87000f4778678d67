def wrap_text(text, width):
    lines = []
    current = ''
    for word in text.split(' '):
        if current and len(current) + 1 + len(word) <= width:
            current += ' ' + word
            continue
        if current:
            lines.append(current)
        while len(word) > width:
            lines.append(word[:width])
            word = word[width:]
        current = word
    return [*lines, current] if current else lines
