def day_of_year(date):
    year, month, day = map(int, date.split("-"))
    return sum([31, 28 + (year % 4 == 0), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][:month - 1]) + day
