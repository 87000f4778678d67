def group_thousands(n):
    text = str(n)
    parts = []
    while text:
        parts.insert(0, text[-3:])
        text = text[:-3]
    return ",".join(parts)
