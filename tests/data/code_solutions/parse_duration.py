def parse_duration(text):
    hours, mark, rest = text.partition("h")
    if not mark:
        hours, rest = "0", text
    return int(hours) * 60 + int(rest.rstrip("m") or 0)
