def multiply_matrices(left, right):
    return [[a * b for a, b in zip(one, two)] for one, two in zip(left, right)]
