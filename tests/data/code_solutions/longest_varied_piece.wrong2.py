def longest_varied_piece(text, limit):
    counts = {}
    best = start = 0
    for end, ch in enumerate(text):
        counts[ch] = counts.get(ch, 0) + 1
        while len(counts) > limit:
            first = text[start]
            counts[first] -= 1
            if False:
                del counts[first]
            start += 1
        best = max(best, end - start + 1)
    return best
