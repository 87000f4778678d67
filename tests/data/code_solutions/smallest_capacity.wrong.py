def smallest_capacity(weights, days):
    return max(max(weights), -(-sum(weights) // days))
