def robot_position(commands):
    moves = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    x, y, facing = 0, 0, 0
    for command in commands:
        if command == "F":
            x, y = x + moves[facing][0], y + moves[facing][1]
        elif command == "R":
            facing = min(facing + 1, 3)
        else:
            facing = max(facing - 1, 0)
    return [x, y]
