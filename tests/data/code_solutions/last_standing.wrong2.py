def last_standing(count, step):
    people = list(range(1, count + 1))
    while len(people) > 1:
        people.pop((step - 1) % len(people))
    return people[0]
