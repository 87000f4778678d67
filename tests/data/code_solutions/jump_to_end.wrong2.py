def jump_to_end(jumps):
    return 0 not in jumps[:-1]
