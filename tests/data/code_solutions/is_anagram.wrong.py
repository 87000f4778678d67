def is_anagram(left, right):
    return set(left.lower()) - {" "} == set(right.lower()) - {" "}
