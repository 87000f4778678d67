def lamp_states(count, presses):
    return sorted(set(presses))
