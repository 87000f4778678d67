def point_distance(left, right):
    return (left[0] - right[0]) ** 2 + (left[1] - right[1]) ** 2
