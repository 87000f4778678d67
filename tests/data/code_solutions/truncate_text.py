def truncate_text(text, limit):
    return text if len(text) <= limit else text[:limit - 3] + "..."
