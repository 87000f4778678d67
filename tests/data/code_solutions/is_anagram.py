def is_anagram(left, right):
    return sorted(left.lower().replace(" ", "")) == sorted(right.lower().replace(" ", ""))
