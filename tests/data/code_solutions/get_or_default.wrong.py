def get_or_default(table, key, default):
    return table.get(key) or default
