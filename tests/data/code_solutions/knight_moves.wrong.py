def knight_moves(start, goal):
    rows, columns = abs(start[0] - goal[0]), abs(start[1] - goal[1])
    return -(-(rows + columns) // 3)
