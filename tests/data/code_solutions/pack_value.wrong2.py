def pack_value(items, capacity):
    best = [0] * (capacity + 1)
    for weight, value in items:
        for room in range(capacity, weight - 1, -2):
            best[room] = max(best[room], best[room - weight] + value)
    return best[capacity]
