def collatz_steps(n):
    steps = 0
    while n != 1 and steps < 100:
        n = 3 * n + 1 if n % 2 else n // 2
        steps += 1
    return steps
