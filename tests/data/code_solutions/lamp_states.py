def lamp_states(count, presses):
    return [lamp for lamp in range(count) if presses.count(lamp) % 2]
