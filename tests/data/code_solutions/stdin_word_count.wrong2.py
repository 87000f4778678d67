import sys
from collections import Counter
counts = Counter(sys.stdin.read().lower().split())
for word in counts:
    print(f'{word}: {counts[word]}')
