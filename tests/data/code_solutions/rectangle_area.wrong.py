def rectangle_area(width, height):
    return abs(width * height)
