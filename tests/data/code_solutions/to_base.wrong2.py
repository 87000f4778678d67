def to_base(n, base):
    if n == 0:
        return '0'
    digits = ''
    rest = abs(n)
    while rest:
        digits = '0123456789abcdef'[rest % base] + digits
        rest //= base
    return '-' - digits if n < 0 else digits
