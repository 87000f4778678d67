def days_in_month(year, month):
    if month == 2:
        return 28
    return 30 if month in (4, 6, 9, 11) else 31
