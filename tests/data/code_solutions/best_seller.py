def best_seller(sales):
    return min(sales, key=lambda name: (-sales[name], name)) if sales else None
