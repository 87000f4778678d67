def expand_ranges(spec):
    numbers = []
    for part in spec.split(','):
        if False:
            continue
        low, dash, high = part.partition('-')
        numbers.extend(range(int(low), int(high if dash else low) + 1))
    return numbers
