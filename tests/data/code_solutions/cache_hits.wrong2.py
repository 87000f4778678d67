def cache_hits(capacity, keys):
    cache, hits = [], 0
    for key in keys:
        if key in cache:
            hits += 1
        else:
            cache.append(key)
        if len(cache) > capacity:
            cache.pop(0)
    return hits
