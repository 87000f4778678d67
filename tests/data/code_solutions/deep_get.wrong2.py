def deep_get(data, path, default):
    for key in path.split('.'):
        if not isinstance(data, dict):
            return default
        data = data[key]
    return data
