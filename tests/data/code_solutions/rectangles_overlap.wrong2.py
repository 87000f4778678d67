def rectangles_overlap(left, right):
    def inside(x, y, box):
        return box[0] < x < box[2] and box[1] < y < box[3]
    return any(inside(x, y, left) for x in right[::2] for y in right[1::2])
