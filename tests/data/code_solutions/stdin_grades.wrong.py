import sys

best_name, best_total, best_mean = "", 0, 0.0
for line in sys.stdin:
    if not line.strip():
        continue
    name, *marks = line.split()
    total = sum(map(int, marks))
    if total > best_total:
        best_name, best_total, best_mean = name, total, total / len(marks)
print(f"{best_name} {best_mean:.2f}")
