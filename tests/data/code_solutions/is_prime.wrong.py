def is_prime(n):
    return all(n % divisor for divisor in range(2, n))
