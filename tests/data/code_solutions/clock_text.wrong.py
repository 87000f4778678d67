def clock_text(seconds):
    return f"{seconds // 3600}:{seconds // 60 % 60}:{seconds % 60}" if seconds else "0:00:00"
