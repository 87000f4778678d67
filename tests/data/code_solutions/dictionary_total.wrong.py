def dictionary_total(prices):
    return sum(set(prices.values()))
