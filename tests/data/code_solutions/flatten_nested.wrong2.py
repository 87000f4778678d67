def flatten_nested(items):
    return [int(digit) for digit in str(items) if digit.isdigit()]
