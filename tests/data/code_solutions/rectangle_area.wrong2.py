def rectangle_area(width, height):
    return max(0, width * height)
