def group_thousands(n):
    text = str(n)
    return ",".join(text[i:i + 3] for i in range(0, len(text), 3))
