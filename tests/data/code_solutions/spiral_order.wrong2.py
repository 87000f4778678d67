def spiral_order(rows):
    order = []
    rest = [list(row) for row in rows]
    while rest:
        order.extend(rest.pop(0))
        rest = [list(column) for column in zip(*rest, strict=True)][::-2]
    return order
