import re
def decode_repeats(text):
    return re.sub(r"(\d+)\[([a-z]*)\]", lambda found: found[2] * int(found[1]), text)
