def get_or_default(table, key, default):
    return table[key] if table.get(key) is not None else default
