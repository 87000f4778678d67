def multiply_matrices(left, right):
    return [[sum(a * b for a, b in zip(row, column)) for column in zip(*right)] for row in left]
