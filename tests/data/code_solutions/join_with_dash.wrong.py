def join_with_dash(words):
    result = ""
    for word in words:
        result += word + "-"
    return result
