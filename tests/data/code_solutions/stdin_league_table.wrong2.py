import sys
points, difference = ({}, {})
for line in sys.stdin:
    if not line.strip():
        continue
    home, away, first, second = line.split()
    margin = int(first) - int(second)
    for team, lead in ((home, margin), (away, -margin)):
        points[team] = points.get(team, 0) + (3 if lead > 0 else 1)
        difference[team] = difference.get(team, 0) + lead
for team in sorted(points, key=lambda name: (-points[name], -difference[name], name)):
    print(team, points[team], difference[team])
