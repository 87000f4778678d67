def rooms_needed(meetings):
    most = 0
    for start, end in meetings:
        most = max(most, sum(a < end and start < b for a, b in meetings))
    return most
