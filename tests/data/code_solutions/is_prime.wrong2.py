def is_prime(n):
    return n > 1 and all(n % divisor for divisor in range(2, int(n ** 0.5)))
