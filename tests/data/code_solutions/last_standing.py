def last_standing(count, step):
    place = 0
    for size in range(2, count + 1):
        place = (place + step) % size
    return place + 1
