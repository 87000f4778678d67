def knight_moves(start, goal):
    jumps = [(1, 2), (2, 1), (-1, 2), (-2, 1), (1, -2), (2, -1), (-1, -2), (-2, -1)]
    distance, queue = {tuple(start): 0}, [tuple(start)]
    for row, column in queue:
        for down, right in jumps:
            square = (row + down, column + right)
            if square not in distance and 0 <= square[0] < 8 and 0 <= square[1] < 8:
                distance[square] = distance[row, column] + 1
                queue.append(square)
    return distance[tuple(goal)]
