def two_teams(people, rivals):
    team = [0] * people
    for a, b in rivals:
        team[b] = 1 - team[a]
    return all(team[a] != team[b] for a, b in rivals)
