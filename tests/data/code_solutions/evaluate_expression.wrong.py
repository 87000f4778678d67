def evaluate_expression(text):
    tokens = list(text.replace(" ", "") + "$")

    def atom():
        if tokens[0] == "(":
            tokens.pop(0)
            value = total()
            tokens.pop(0)
            return value
        digits = ""
        while tokens[0].isdigit():
            digits += tokens.pop(0)
        return int(digits)

    def total():
        value = atom()
        while tokens[0] in "+-*":
            operator = tokens.pop(0)
            other = atom()
            value = value + other if operator == "+" else value - other if operator == "-" else value * other
        return value

    return total()
