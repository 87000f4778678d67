def day_of_year(date):
    year, month, day = map(int, date.split("-"))
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return sum([31, 28 + leap, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][:month - 1]) + day
