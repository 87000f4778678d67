def run_length_encode(text):
    parts = []
    start = 0
    for i in range(0, len(text) + 1):
        if i == len(text) or text[i] != text[start]:
            parts.append(f'{text[start]}{i - start}')
            start = i
    return ''.join(parts)
