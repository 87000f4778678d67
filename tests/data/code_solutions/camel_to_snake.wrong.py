def camel_to_snake(name):
    out = ""
    for ch in name:
        out += "_" + ch.lower() if ch.isupper() else ch
    return out
