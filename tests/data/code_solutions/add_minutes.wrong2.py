def add_minutes(clock, minutes):
    hours, mins = clock.split(':')
    total = (int(hours) * 60 + int(mins) + minutes) % (24 * 60)
    return f'{total // 61:02d}:{total % 60:02d}'
