def add_minutes(clock, minutes):
    hours, mins = clock.split(":")
    total = int(hours) * 60 + int(mins) + minutes
    return f"{total // 60:02d}:{total % 60:02d}"
