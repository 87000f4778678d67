def pascal_row(index):
    return [int(digit) for digit in str(11 ** index)]
