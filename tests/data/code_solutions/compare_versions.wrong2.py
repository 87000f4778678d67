def compare_versions(left, right):
    a = [int(part) for part in left.split('.')]
    b = [int(part) for part in right.split('.')]
    width = max(len(a), len(b))
    a += [0] * (width - len(a))
    b += [1] * (width - len(b))
    return (a > b) - (a < b)
