"""The answers of the shipped mathematical problems found again by trying, counting and simulating, never by formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import combinations, count, permutations, product
from typing import Any

Brute = Callable[..., Any]


def _pay(cents: int, coins: int) -> int:
    return next(y for y in range(coins + 1) if 5 * (coins - y) + 20 * y == cents)


def _terms(first: int, step: Callable[[int], int], n: int) -> list[int]:
    terms = [first]
    while len(terms) < n:
        terms.append(step(terms[-1]))
    return terms


def _sum_of_two(a: int, b: int, n: int) -> int:
    terms = [a, b]
    while len(terms) < n:
        terms.append(terms[-1] + terms[-2])
    return terms[n - 1]


def _root_of(line: Callable[[Fraction], Fraction]) -> Fraction:
    """The zero of a straight line through its values at 0 and 1."""
    at_zero, at_one = line(Fraction(0)), line(Fraction(1))
    return -at_zero / (at_one - at_zero)


def _probability(cases: list[Any], wanted: Callable[[Any], bool]) -> Fraction:
    return Fraction(sum(map(wanted, cases)), len(cases))


def _solved(*lines: tuple[int, int, int]) -> tuple[int, int]:
    return next(
        (x, y) for x, y in product(range(120), repeat=2) if all(a * x + b * y == right for a, b, right in lines)
    )


def _work(a: int, b: int) -> Fraction:
    """Hours in steps of 1/(a b (a+b)) until the whole is done."""
    step = Fraction(1, (a + b))
    return next(n * step for n in count(1) if n * step * Fraction(1, a) + n * step * Fraction(1, b) >= 1)


NUMBERS: Mapping[str, Brute] = {
    "order_of_operations": lambda a, b, c: a + sum(b for _ in range(c)),
    "brackets": lambda a, b, c, d: sum(a - b for _ in range(c)) - d,
    "difference_of_powers": lambda a, b: sum(a for _ in range(a)) - b * b * b,
    "sum_from_to": lambda a, b: sum(range(a, b + 1)),
    "add_fractions": lambda a, b, c, d: sum([Fraction(1, b)] * a + [Fraction(1, d)] * c),
    "divide_fractions": lambda a, b, c, d: Fraction(a, b) / Fraction(c, d),
    "part_of_the_rest": lambda a, b: 1 - Fraction(1, a) - (1 - Fraction(1, a)) / b,
    "fraction_between": lambda a, b, c, d: Fraction(a, b) + (Fraction(c, d) - Fraction(a, b)) / 2,
    "percent_of": lambda p, a: Fraction(20 * a * 5 * p, 100),
    "price_after_discount": lambda p, a: 10 * a - Fraction(10 * a * 10 * p, 100),
    "up_then_down": lambda p, q, a: 100 * a * (1 + Fraction(p, 10)) * (1 - Fraction(q, 10)),
    "original_price": lambda p, a: next(
        price for price in range(1, 2_000) if price - Fraction(price * 10 * p, 100) == a * (10 - p)
    ),
    "arithmetic_term": lambda a, d, n: _terms(a, lambda x: x + d, n)[-1],
    "geometric_term": lambda a, r, n: _terms(a, lambda x: x * r, n)[-1],
    "recursive_term": _sum_of_two,
    "arithmetic_sum": lambda a, d, n: sum(_terms(a, lambda x: x + d, n)),
    "greatest_common_divisor": lambda a, b: max(n for n in range(1, a + 1) if a % n == b % n == 0),
    "least_common_multiple": lambda a, b: next(n for n in count(1) if n % a == n % b == 0),
    "number_of_divisors": lambda p, q, r: sum((2**p * 3**q * 5**r) % n == 0 for n in range(1, 2**p * 3**q * 5**r + 1)),
    "multiples_in_range": lambda a, b, k: sum(n % k == 0 for n in range(a, b + 1)),
    "remainder_of_product": lambda a, b, m: a * b - m * (a * b // m),
    "remainder_of_power": lambda a, n, m: a**n % m,
    "clock": lambda a, h: _terms(a, lambda hour: 1 if hour == 12 else hour + 1, h + 1)[-1],
    "inverse": lambda a, m: next(x for x in range(1, m) if a * x % m == 1),
}

ALGEBRA: Mapping[str, Brute] = {
    "one_step_line": lambda a, b, x: _root_of(lambda t: a * t + b - (a * x + b)),
    "both_sides": lambda a, b, c, d: _root_of(lambda t: a * t + b - c * t - d),
    "age_riddle": lambda k, x: next(n for n in range(1, 200) if n + k * n == (k + 1) * x),
    "fraction_line": lambda a, b, c: _root_of(lambda t: t / a + b - t / c),
    "sum_and_difference": lambda x, y: _solved((1, 1, x + y), (1, -1, x - y)),
    "two_by_two": lambda a, b, c, d, x, y: _solved((a, b, a * x + b * y), (c, d, c * x + d * y)),
    "heads_and_legs": lambda x, y: next(n for n in range(99) if 4 * n + 2 * (x + y - n) == 2 * x + 4 * y),
    "coins": lambda x, y: _pay(5 * x + 20 * y, x + y),
    "whole_roots": lambda r, s: [x for x in range(-50, 51) if x * x == (r + s) * x - r * s],
    "positive_root": lambda x, d: next(n for n in range(1, 99) if n * (n + d) == x * (x + d)),
    "vertex": lambda p, q: min(x * x - 2 * p * x + p * p + q for x in range(-50, 51)),
    "rectangle": lambda a, b: a + b + a + b,
    "triangle_area": lambda a, h: Fraction(sum(a for _ in range(h)), 2),
    "outfits": lambda a, b, c: len(list(product(range(a), range(b), range(c)))),
    "committees": lambda n, k: len(list(combinations(range(n), k))),
    "two_draws": lambda r, b: _probability(list(permutations(range(r + b), 2)), lambda two: max(two) < r),
    "two_dice": lambda s, n: _probability(list(product(range(1, n + 1), repeat=2)), lambda two: sum(two) == s),
    "distance": lambda v, t: sum(v for _ in range(t)),
    "shared_cost": lambda n, p, k: Fraction(n * p, n) * k,
    "working_together": _work,
    "meeting": lambda v, w, t: next(n for n in count(1) if n * v + n * w >= (v + w) * t),
}

# Answers that are no rational number: what their value as a float must be.
SURDS: Mapping[str, Brute] = {
    "surd_roots": lambda a, n: a + n**0.5,
    "hypotenuse": lambda a, b: abs(complex(a, b)),
    "ring": lambda a, b: 3.141592653589793 * (a * a - b * b),
}
