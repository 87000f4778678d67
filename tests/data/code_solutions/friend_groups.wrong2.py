def friend_groups(people, friends):
    group = list(range(people))
    for a, b in friends:
        group[max(a, b)] = group[min(a, b)]
    return len(set(group))
