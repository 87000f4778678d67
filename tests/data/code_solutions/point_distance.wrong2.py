def point_distance(left, right):
    return int(((left[0] - right[0]) ** 2 + (left[1] - right[1]) ** 2) ** 0.5)
