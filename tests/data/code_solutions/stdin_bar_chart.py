import sys

rows = [line.split() for line in sys.stdin if line.strip()]
width = max((len(name) for name, _ in rows), default=0)
for name, value in rows:
    print(f"{name:<{width}} | {'#' * int(value)}")
