def deep_get(data, path, default):
    for key in path.split("."):
        data = data.get(key)
        if not data:
            return default
    return data
