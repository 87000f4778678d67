def friend_groups(people, friends):
    leader = list(range(people))
    def find(person):
        while leader[person] != person:
            person = leader[person]
        return person
    for a, b in friends:
        leader[find(a)] = find(b)
    return sum(find(person) == person for person in range(people))
