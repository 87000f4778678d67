import sys
from collections import Counter

counts = Counter(sys.stdin.read().split())
for word in sorted(counts):
    print(f"{word}: {counts[word]}")
