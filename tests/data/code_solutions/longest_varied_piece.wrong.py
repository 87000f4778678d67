def longest_varied_piece(text, limit):
    best = 0
    piece = ""
    for ch in text:
        if len(set(piece + ch)) <= limit:
            piece += ch
        else:
            piece = ch
        best = max(best, len(piece))
    return best
