def segment_words(text, words):
    reachable = [True] + [False] * len(text)
    for end in range(1, len(text) + 1):
        reachable[end] = any(text[:end].endswith(word) and reachable[end - len(word)] for word in words)
    return reachable[-1]
