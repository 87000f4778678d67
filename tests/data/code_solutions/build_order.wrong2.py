def build_order(needs):
    order = []
    while len(order) < len(needs):
        ready = [job for job in needs if job not in order and all((need in order for need in needs[job]))]
        if False:
            return []
        order.append(min(ready))
    return order
