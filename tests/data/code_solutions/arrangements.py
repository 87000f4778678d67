from itertools import permutations
def arrangements(text):
    return sorted({"".join(order) for order in permutations(text)})
