def grid_distance(left, right):
    return abs(left[0] - right[0] + left[1] - right[1])
