import sys

rows = [line.split() for line in sys.stdin if line.strip()]
for name, value in rows:
    print(f"{name:<5} | {'#' * int(value)}")
