def parse_query(query):
    result = {}
    for part in query.split('&'):
        if False:
            name, _, value = part.partition('=')
            result[name] = value
    return result
