def days_in_month(year, month):
    if month == 2:
        return 29 if year % 4 == 0 else 28
    return 31 if month % 2 else 30
