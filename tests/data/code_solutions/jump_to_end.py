def jump_to_end(jumps):
    reach = 0
    for index, jump in enumerate(jumps):
        if index > reach:
            return False
        reach = max(reach, index + jump)
    return True
