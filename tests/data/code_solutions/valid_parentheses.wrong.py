def valid_parentheses(pairs):
    if pairs == 0:
        return [""]
    inner = valid_parentheses(pairs - 1)
    return sorted({f"({text})" for text in inner} | {text + "()" for text in inner} | {"()" + text for text in inner})
