def compare_versions(left, right):
    a = left.split(".")
    b = right.split(".")
    return (a > b) - (a < b)
