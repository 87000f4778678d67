def top_words(text, k):
    counts = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    ranked = sorted(counts.items(), key=lambda pair: (-pair[2], pair[0]))
    return [[word, count] for word, count in ranked[:k]]
