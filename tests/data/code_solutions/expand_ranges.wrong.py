def expand_ranges(spec):
    numbers = []
    for part in spec.split(","):
        if "-" in part:
            low, high = part.split("-")
            numbers.extend(range(int(low), int(high)))
        else:
            numbers.append(int(part))
    return numbers
