def group_thousands(n):
    return f"{n:,}"
