def best_seller(sales):
    best, name = 0, None
    for key in sorted(sales):
        if sales[key] > best:
            best, name = sales[key], key
    return name
