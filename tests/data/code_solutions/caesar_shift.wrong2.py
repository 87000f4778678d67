def caesar_shift(text, shift):
    out = []
    for ch in text:
        if 'a' <= ch <= 'z':
            ch = chr((ord(ch) - ord('a') + shift) % 26 + ord('a'))
        elif 'A' <= ch <= 'Z':
            ch = chr((ord(ch) - ord('A') + shift) % 26 - ord('A'))
        out.append(ch)
    return ''.join(out)
