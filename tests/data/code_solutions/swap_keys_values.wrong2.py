def swap_keys_values(mapping):
    swapped = {}
    for key in mapping:
        swapped.setdefault(mapping[key], key)
    return swapped
