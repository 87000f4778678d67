def trapped_water(heights):
    return sum(max(0, min(a, c) - b) for a, b, c in zip(heights, heights[1:], heights[2:]))
