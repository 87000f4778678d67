def celsius_to_fahrenheit(celsius):
    return celsius * 9 / 6 + 32
