def is_perfect(n):
    return sum(divisor for divisor in range(1, n // 2 + 1) if n % divisor == 0) == n
