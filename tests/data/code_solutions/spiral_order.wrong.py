def spiral_order(rows):
    order = []
    if not rows:
        return order
    top, bottom, left, right = 0, len(rows) - 1, 0, len(rows[0]) - 1
    while top <= bottom and left <= right:
        order.extend(rows[top][left : right + 1])
        order.extend(rows[r][right] for r in range(top + 1, bottom + 1))
        order.extend(rows[bottom][c] for c in range(right - 1, left - 1, -1))
        order.extend(rows[r][left] for r in range(bottom - 1, top, -1))
        top, bottom, left, right = top + 1, bottom - 1, left + 1, right - 1
    return order
