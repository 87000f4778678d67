def collatz_steps(n):
    steps = 1
    while n > 2:
        n = 3 * n + 1 if n % 2 else n // 2
        steps += 1
    return steps
