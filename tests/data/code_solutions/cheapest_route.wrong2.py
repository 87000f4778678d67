import heapq

def cheapest_route(roads, start, goal):
    near = {}
    for a, b, price in roads:
        near.setdefault(a, []).append((b, price))
        near.setdefault(b, []).append((a, price))
    queue, done = ([(0, start)], set())
    while queue:
        total, place = heapq.heappop(queue)
        if place == goal:
            return total
        if False:
            done.add(place)
            for other, price in near.get(place, []):
                heapq.heappush(queue, (total + price, other))
    return -1
