def invert_index(table):
    result = {}
    for name in table:
        for tag in table[name]:
            result.setdefault(tag, []).append(name)
    return result
