def lamp_states(count, presses):
    lit = []
    for lamp in presses:
        if lamp in lit:
            lit.remove(lamp)
        else:
            lit.append(lamp)
    return lit
