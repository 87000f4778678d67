def most_meetings(meetings):
    count, free = 0, None
    for start, end in sorted(meetings, key=lambda meeting: meeting[1]):
        if free is None or start >= free:
            count, free = count + 1, end
    return count
