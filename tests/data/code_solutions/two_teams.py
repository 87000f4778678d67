def two_teams(people, rivals):
    near = [[] for _ in range(people)]
    for a, b in rivals:
        near[a].append(b)
        near[b].append(a)
    team = {}
    for person in range(people):
        if person in team:
            continue
        team[person], queue = 0, [person]
        for here in queue:
            for other in near[here]:
                if other not in team:
                    team[other] = 1 - team[here]
                    queue.append(other)
                elif team[other] == team[here]:
                    return False
    return True
