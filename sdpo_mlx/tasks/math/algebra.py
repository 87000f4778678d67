"""Exact algebra, small on purpose: sums of rational multiples of roots, constants and letters, and their quotients.

A `Sum` maps a product of atoms to its rational factor. Atoms are letters, `pi`, `e`, the primes under a root and,
where a root does not come apart, a root of a whole sum; each has a rational power. Roots of different primes are
linearly independent over the rationals (Besicovitch, 1940), so two sums without other roots are equal as numbers
exactly when they are equal as maps. Sizes are bounded before anything is computed: TooBigError is raised instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from fractions import Fraction

MOST_BITS = 4_000
MOST_TERMS = 120
HIGHEST_POWER = 4_000
_DIGITS = 60
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534")

Product = tuple[tuple[str, Fraction], ...]
Sum = dict[Product, Fraction]


class TooBigError(ValueError):
    """A number or an expression beyond what is worth computing."""


@dataclass(frozen=True, eq=False)
class Quotient:
    """A sum over another."""

    over: tuple[tuple[Product, Fraction], ...]
    under: tuple[tuple[Product, Fraction], ...]

    def equals(self, other: Quotient) -> bool:
        """True if both are the same expression, or the same number to 45 digits where roots are nested."""
        left, right = _times(dict(self.over), dict(other.under)), _times(dict(other.over), dict(self.under))
        if left == right:
            return True
        if not (self.nested or other.nested):
            return False
        one, two = self.decimal(), other.decimal()
        if one is None or two is None:
            return False
        gap = _context().subtract(one, two)
        return abs(gap) <= max(abs(one), abs(two), Decimal(1)).scaleb(-45)

    @property
    def nested(self) -> bool:
        """Whether a root of a sum is left in it."""
        return any(name.startswith("root ") for name in self.names())

    @property
    def rational(self) -> Fraction | None:
        """The value when it is rational."""
        over, under = dict(self.over), dict(self.under)
        if not over:
            return Fraction(0)
        return over[()] / under[()] if set(over) == {()} and set(under) == {()} else None

    def names(self) -> set[str]:
        """Return the atoms in it."""
        return {name for product, _ in (*self.over, *self.under) for name, _ in product}

    def decimal(self) -> Decimal | None:
        """Return the value to 60 digits; None with letters in it, or outside of the real numbers."""
        try:
            return _context().divide(_value(self.over), _value(self.under))
        except (InvalidOperation, ArithmeticError, KeyError):
            return None


def number(value: Fraction) -> Quotient:
    """Return a rational number."""
    return Quotient(tuple({(): value}.items()) if value else (), (((), Fraction(1)),))


def letter(name: str) -> Quotient:
    """Return a letter, `pi`, `e`, `oo`, or `i`, whose square is -1."""
    return Quotient(((((name, Fraction(1)),), Fraction(1)),), (((), Fraction(1)),))


def add(one: Quotient, two: Quotient) -> Quotient:
    """Return the sum of both."""
    if one.under == two.under:
        return _quotient(_plus(dict(one.over), dict(two.over)), dict(one.under))
    left, right = _times(dict(one.over), dict(two.under)), _times(dict(two.over), dict(one.under))
    return _quotient(_plus(left, right), _times(dict(one.under), dict(two.under)))


def multiply(one: Quotient, two: Quotient) -> Quotient:
    """Return the product of both."""
    return _quotient(_times(dict(one.over), dict(two.over)), _times(dict(one.under), dict(two.under)))


def invert(one: Quotient) -> Quotient:
    """One over it. Raises ZeroDivisionError."""
    if not one.over:
        raise ZeroDivisionError("division by zero")
    return _quotient(dict(one.under), dict(one.over))


def power(base: Quotient, exponent: Quotient) -> Quotient:
    """Return the base to a rational power. Raises TooBigError, ZeroDivisionError, ValueError for other exponents."""
    times = exponent.rational
    if times is None:
        raise ValueError("only rational powers are known")
    if abs(times.numerator) > HIGHEST_POWER or times.denominator > 12:
        raise TooBigError("the power is too high")
    if times < 0:
        base, times = invert(base), -times
    if times.denominator == 1:
        return _whole_power(base, times.numerator)
    return _whole_power(_root(base, times.denominator), times.numerator)


def _whole_power(base: Quotient, times: int) -> Quotient:
    result = number(Fraction(1))
    while times:
        if times & 1:
            result = multiply(result, base)
        times >>= 1
        base = multiply(base, base) if times else base
    return result


def _root(base: Quotient, degree: int) -> Quotient:
    """Return the real root where it is known; the root of a sum becomes an atom."""
    value = base.rational
    if value is not None:
        return _root_of_number(value, degree)
    over, under = dict(base.over), dict(base.under)
    if len(over) == len(under) == 1:
        return multiply(_root_of_product(over, degree), invert(_root_of_product(under, degree)))
    known = base.decimal()
    if known is not None and known < 0:
        raise ValueError("roots of negative sums are not known")
    name = f"root {known}" if known is not None else f"root of {sorted(over.items())!r} / {sorted(under.items())!r}"
    return Quotient(((((name, Fraction(1, degree)),), Fraction(1)),), (((), Fraction(1)),))


def _root_of_product(total: Sum, degree: int) -> Quotient:
    ((product, factor),) = total.items()
    if any(name == "i" for name, _ in product):
        raise ValueError("roots of complex numbers are not known")
    # The root of x^2 is |x|, which is neither x nor anything else known here.
    if degree % 2 == 0 and any(exponent.numerator % 2 == 0 and _may_be_negative(name) for name, exponent in product):
        raise ValueError("even roots of even powers of letters are not known")
    powers = tuple((name, exponent / degree) for name, exponent in product)
    return multiply(_root_of_number(factor, degree), Quotient(((powers, Fraction(1)),), (((), Fraction(1)),)))


def _may_be_negative(name: str) -> bool:
    return name not in ("pi", "e") and not name.startswith(("prime ", "root "))


def _root_of_number(value: Fraction, degree: int) -> Quotient:
    """By prime factors; -1 has the root -1 where the degree is odd, and i where it is 2."""
    sign = number(Fraction(1))
    if value < 0:
        if degree % 2 and degree > 1:
            sign = number(Fraction(-1))
        elif degree == 2:
            sign = letter("i")
        else:
            raise ValueError("even roots of negative numbers are not known")
    result = multiply(sign, number(Fraction(1) if value else Fraction(0)))
    for whole, direction in ((abs(value.numerator), 1), (value.denominator, -1)):
        for prime, times in _factors(whole):
            result = multiply(result, _prime_power(prime, Fraction(direction * times, degree)))
    return result


def _prime_power(prime: int, exponent: Fraction) -> Quotient:
    whole, rest = divmod(exponent, 1)
    factor = Fraction(prime) ** int(whole)
    product: Product = ((f"prime {prime}", Fraction(rest)),) if rest else ()
    return Quotient(((product, factor),), (((), Fraction(1)),))


def _factors(whole: int) -> Iterator[tuple[int, int]]:
    """Yield prime factors by trial up to 10,000; what is left must be small enough to be known a prime."""
    divisor = 2
    while divisor * divisor <= whole and divisor < 10_000:
        times = 0
        while whole % divisor == 0:
            whole, times = whole // divisor, times + 1
        if times:
            yield divisor, times
        divisor += 1
    if whole >= 10_000**2:
        raise TooBigError("the number under the root is too large")
    if whole > 1:
        yield whole, 1


def _quotient(over: Sum, under: Sum) -> Quotient:
    """Return the sign and size of a lone factor below goes up, so that equal numbers mostly look equal."""
    if len(under) == 1:
        ((product, factor),) = under.items()
        inverse = {tuple((name, -exponent) for name, exponent in product): 1 / factor}
        if not any(name == "i" or name.startswith("root ") for name, _ in product):
            over, under = _times(over, inverse), {(): Fraction(1)}
    return Quotient(tuple(sorted(over.items())), tuple(sorted(under.items())))


def _plus(one: Sum, two: Sum) -> Sum:
    total = dict(one)
    for product, factor in two.items():
        total[product] = _bounded(total.get(product, Fraction(0)) + factor)
    return _without_zeros(total)


def _times(one: Sum, two: Sum) -> Sum:
    if len(one) * len(two) > MOST_TERMS**2 // 4:
        raise TooBigError("the expression has too many terms")
    total: Sum = {}
    for left, a in one.items():
        for right, b in two.items():
            product, factor = _joined(left, right, a * b)
            total[product] = _bounded(total.get(product, Fraction(0)) + factor)
    if len(total) > MOST_TERMS:
        raise TooBigError("the expression has too many terms")
    return _without_zeros(total)


def _joined(left: Product, right: Product, factor: Fraction) -> tuple[Product, Fraction]:
    """Return powers of equal atoms add; whole powers of primes and of i leave the product."""
    powers = dict(left)
    for name, exponent in right:
        powers[name] = powers.get(name, Fraction(0)) + exponent
    kept = []
    for name, exponent in sorted(powers.items()):
        if name.startswith("prime "):
            whole, exponent = divmod(exponent, 1)
            factor *= Fraction(int(name.removeprefix("prime "))) ** int(whole)
        elif name == "i":
            factor *= -1 if int(exponent) % 4 >= 2 else 1
            exponent = Fraction(int(exponent) % 2)
        if exponent:
            kept.append((name, Fraction(exponent)))
    return tuple(kept), factor


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > MOST_BITS or value.denominator.bit_length() > MOST_BITS:
        raise TooBigError("the number has too many digits")
    return value


def _without_zeros(total: Sum) -> Sum:
    return {product: factor for product, factor in total.items() if factor}


def _context() -> Context:
    return Context(prec=_DIGITS, Emax=20_000, Emin=-20_000, traps=[InvalidOperation, Overflow, DivisionByZero])


def _value(terms: tuple[tuple[Product, Fraction], ...]) -> Decimal:
    context, total = _context(), Decimal(0)
    for product, factor in terms:
        value = context.divide(Decimal(factor.numerator), Decimal(factor.denominator))
        for name, exponent in product:
            raised = context.divide(Decimal(exponent.numerator), Decimal(exponent.denominator))
            value = context.multiply(value, context.power(_atom(name), raised))
        total = context.add(total, value)
    return total


def _atom(name: str) -> Decimal:
    if name.startswith("prime "):
        return Decimal(name.removeprefix("prime "))
    if name.startswith("root ") and not name.startswith("root of "):
        return Decimal(name.removeprefix("root "))
    return {"pi": _PI, "e": _context().exp(Decimal(1))}[name]
