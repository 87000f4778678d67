import sys
rows = [[cell.strip() for cell in line.split(",")] for line in sys.stdin if line.strip()]
widths = [max(map(len, column)) for column in zip(*rows)]
for row in rows:
    print(" | ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip())
