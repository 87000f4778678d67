from itertools import product
def valid_parentheses(pairs):
    texts = ["".join(letters) for letters in product("()", repeat=2 * pairs)]
    return [text for text in texts if text.count("(") == pairs and (text[0] == "(" and text[-1] == ")")]
