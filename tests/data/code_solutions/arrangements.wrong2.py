from itertools import permutations
def arrangements(text):
    return list(dict.fromkeys("".join(order) for order in permutations(text)))
