import sys

rows = [line.split() for line in sys.stdin if line.strip()]
longest = max(len(name) for name, _ in rows)
for name, value in rows:
    print(f"{name:<{longest}} | {'#' * int(value)}")
