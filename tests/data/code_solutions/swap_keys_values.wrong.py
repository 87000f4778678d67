def swap_keys_values(mapping):
    return {value: key for key, value in mapping.items()}
