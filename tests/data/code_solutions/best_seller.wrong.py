def best_seller(sales):
    return max(sales, key=sales.get) if sales else None
