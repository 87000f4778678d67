def valid_parentheses(pairs):
    result = []
    def grow(text, opened, closed):
        if closed == pairs:
            result.append(text)
        if opened < pairs:
            grow(text + "(", opened + 1, closed)
        if closed < opened:
            grow(text + ")", opened, closed + 1)
    grow("", 0, 0)
    return result
