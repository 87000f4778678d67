def trapped_water(heights):
    low, high, left, right, water = 0, len(heights) - 1, 0, 0, 0
    while low < high:
        left, right = max(left, heights[low]), max(right, heights[high])
        if left <= right:
            water += left - heights[low]
            low += 1
        else:
            water += right - heights[high]
            high -= 1
    return water
