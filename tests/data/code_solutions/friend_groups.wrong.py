def friend_groups(people, friends):
    return people - len(friends)
