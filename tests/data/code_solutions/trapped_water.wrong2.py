def trapped_water(heights):
    top = min(heights[0], heights[-1]) if heights else 0
    return sum(max(0, top - height) for height in heights)
