def rob_houses(amounts):
    taken, skipped = 0, 0
    for amount in amounts:
        taken, skipped = skipped + amount, max(taken, skipped)
    return max(taken, skipped)
