def jump_to_end(jumps):
    index = 0
    while index < len(jumps) - 1 and jumps[index]:
        index += jumps[index]
    return index >= len(jumps) - 1
