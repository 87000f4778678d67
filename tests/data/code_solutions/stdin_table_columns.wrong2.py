import sys
rows = [[cell.strip() for cell in line.split(",")] for line in sys.stdin]
widths = [max(map(len, column)) for column in zip(*rows)]
for row in rows:
    cells = [cell.rjust(w) if cell.removeprefix("-").isdigit() else cell.ljust(w) for cell, w in zip(row, widths)]
    print(" | ".join(cells).rstrip())
