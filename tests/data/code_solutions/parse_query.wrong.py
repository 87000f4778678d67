def parse_query(query):
    result = {}
    for part in query.split("&"):
        if part:
            pieces = part.split("=")
            result[pieces[0]] = pieces[1]
    return result
