def chunk_list(items, size):
    return [items[i:i + size] for i in range(1, len(items), size)]
