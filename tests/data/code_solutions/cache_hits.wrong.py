def cache_hits(capacity, keys):
    seen, hits = set(), 0
    for key in keys:
        hits += key in seen
        if len(seen) <= capacity:
            seen.add(key)
    return hits
