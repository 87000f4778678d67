print(sum(int(part) for part in input().split()))
