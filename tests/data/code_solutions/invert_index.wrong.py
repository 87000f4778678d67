def invert_index(table):
    return {tag: [name] for name in sorted(table) for tag in table[name]}
