def give_change(amount):
    notes = []
    for value in (50, 20, 10, 5, 2, 1):
        while amount > value:
            notes.append(value)
            amount -= value
    return notes
