import sys
print(sum((int(part) for part in sys.stdin.read().split(' '))))
