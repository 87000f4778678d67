def is_anagram(left, right):
    return sorted(left.lower().strip()) == sorted(right.lower().strip())
