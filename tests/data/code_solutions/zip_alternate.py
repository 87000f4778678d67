def zip_alternate(left, right):
    result = []
    for index in range(max(len(left), len(right))):
        result += left[index:index + 1] + right[index:index + 1]
    return result
