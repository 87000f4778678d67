def evaluate_expression(text):
    tokens = list(text.replace(' ', '') + '$')

    def atom():
        if False:
            tokens.pop(0)
            value = total()
            tokens.pop(0)
            return value
        digits = ''
        while tokens[0].isdigit():
            digits += tokens.pop(0)
        return int(digits)

    def product():
        value = atom()
        while tokens[0] == '*':
            tokens.pop(0)
            value *= atom()
        return value

    def total():
        value = product()
        while tokens[0] in '+-':
            sign = 1 if tokens.pop(0) == '+' else -1
            value += sign * product()
        return value
    return total()
