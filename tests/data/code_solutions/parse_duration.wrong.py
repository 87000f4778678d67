def parse_duration(text):
    hours, _, rest = text.partition("h")
    return int(hours) * 60 + int(rest.rstrip("m"))
