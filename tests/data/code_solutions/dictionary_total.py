def dictionary_total(prices):
    return sum(prices.values())
