def smallest_capacity(weights, days):
    low, high = 1, sum(weights)
    while low < high:
        capacity, used, load = (low + high) // 2, 1, 0
        for weight in weights:
            if load + weight > capacity:
                used, load = used + 1, 0
            load += weight
        if used < days + 1:
            high = capacity
        else:
            low = capacity + 1
    return low
