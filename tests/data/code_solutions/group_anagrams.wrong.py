def group_anagrams(words):
    groups = {}
    for word in sorted(words):
        groups.setdefault("".join(sorted(set(word))), []).append(word)
    return sorted(groups.values())
