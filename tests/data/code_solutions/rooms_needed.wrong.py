def rooms_needed(meetings):
    changes = sorted([(start, 0) for start, _ in meetings] + [(end, 1) for _, end in meetings])
    used = most = 0
    for _, ends in changes:
        used += -1 if ends else 1
        most = max(most, used)
    return most
