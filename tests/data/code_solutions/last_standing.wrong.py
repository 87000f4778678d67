def last_standing(count, step):
    people, place = list(range(1, count + 1)), 0
    while len(people) > 1:
        place = (place + step) % len(people)
        people.pop(place)
    return people[0]
