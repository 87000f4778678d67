def is_palindrome(text):
    cleaned = text.replace(' ', '').lower()
    return cleaned == cleaned[::-2]
