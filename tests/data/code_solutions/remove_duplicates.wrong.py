def remove_duplicates(items):
    return sorted(set(items))
