def parse_query(query):
    result = {}
    for part in query.split("&"):
        if part:
            name, _, value = part.partition("=")
            result[name] = value
    return result
