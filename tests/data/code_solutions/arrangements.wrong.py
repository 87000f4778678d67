from itertools import permutations
def arrangements(text):
    return ["".join(order) for order in permutations(text)]
