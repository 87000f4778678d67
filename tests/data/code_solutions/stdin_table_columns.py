import sys
rows = [[cell.strip() for cell in line.split(",")] for line in sys.stdin if line.strip()]
columns = list(zip(*rows))
widths = [max(map(len, column)) for column in columns]
right = [all(cell.removeprefix("-").isdigit() for cell in column) for column in columns]
for row in rows:
    cells = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right)]
    print(" | ".join(cells).rstrip())
