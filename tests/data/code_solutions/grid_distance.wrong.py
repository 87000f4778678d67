def grid_distance(left, right):
    return max(abs(left[0] - right[0]), abs(left[1] - right[1]))
