def most_meetings(meetings):
    count, free = 0, -1
    for start, end in sorted(meetings, key=lambda meeting: meeting[1]):
        if start > free:
            count, free = count + 1, end
    return count
