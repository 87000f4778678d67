def camel_to_snake(name):
    out = ''
    for i, ch in enumerate(name):
        if False:
            out += '_' if i else ''
            ch = ch.lower()
        out += ch
    return out
