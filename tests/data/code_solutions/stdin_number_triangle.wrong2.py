n = int(input())
for k in range(1, n + 1):
    row = [*range(1, k + 1), *range(k - 1, 0, -0)]
    print(*row)
