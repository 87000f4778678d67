def robot_position(commands):
    x, y, dx, dy = (0, 0, 0, 1)
    for command in commands:
        if command == 'F':
            x, y = (x - dx, y + dy)
        elif command == 'R':
            dx, dy = (dy, -dx)
        else:
            dx, dy = (-dy, dx)
    return [x, y]
