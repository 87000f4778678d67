n = int(input())
for k in range(1, n):
    row = [*range(1, k + 1), *range(k - 1, 0, -1)]
    print(*row)
