import sys
best_name, best_mean = ('', float('-inf'))
for line in sys.stdin:
    if not line.strip():
        continue
    name, *marks = line.split()
    mean = sum(map(int, marks)) / len(marks)
    if mean >= best_mean:
        best_name, best_mean = (name, mean)
print(f'{best_name} {best_mean:.2f}')
