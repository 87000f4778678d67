"""Templates about numbers: arithmetic, fractions, percentages, sequences, divisibility, remainders."""

from __future__ import annotations

import math
from fractions import Fraction

from template import Template

ARITHMETIC = (
    Template(
        "order_of_operations",
        "arithmetic",
        "easy",
        {"a": (12, 95), "b": (3, 12), "c": (4, 15)},
        ("Compute <a> + <b> * <c>.", "What is the value of <a> + <b> * <c>?"),
        lambda a, b, c: a + b * c,
    ),
    Template(
        "brackets",
        "arithmetic",
        "easy",
        {"a": (20, 60), "b": (3, 19), "c": (3, 9), "d": (10, 99)},
        ("Evaluate (<a> - <b>) * <c> - <d>.", "Work out (<a> - <b>) * <c> - <d>."),
        lambda a, b, c, d: (a - b) * c - d,
    ),
    Template(
        "difference_of_powers",
        "arithmetic",
        "medium",
        {"a": (5, 15), "b": (2, 6)},
        ("Find <a>^2 - <b>^3.", "By how much is <a> squared larger than <b> cubed? A negative number means smaller."),
        lambda a, b: a**2 - b**3,
    ),
    Template(
        "sum_from_to",
        "arithmetic",
        "medium",
        {"a": (3, 40), "b": (60, 120)},
        (
            "What is the sum of all whole numbers from <a> to <b>, both included?",
            "Add up every integer n with <a> <= n <= <b>. What do you get?",
        ),
        lambda a, b: (a + b) * (b - a + 1) // 2,
        held_out=True,
    ),
)

FRACTIONS = (
    Template(
        "add_fractions",
        "fractions",
        "easy",
        {"a": (1, 5), "b": (2, 9), "c": (1, 5), "d": (2, 9)},
        ("Compute <a>/<b> + <c>/<d>. Give a fraction in lowest terms.", "Write <a>/<b> + <c>/<d> as one fraction."),
        lambda a, b, c, d: Fraction(a, b) + Fraction(c, d),
        lambda a, b, c, d: a < b and c < d and b != d,
    ),
    Template(
        "divide_fractions",
        "fractions",
        "easy",
        {"a": (1, 8), "b": (2, 9), "c": (1, 8), "d": (2, 9)},
        ("Divide <a>/<b> by <c>/<d>.", "What is the quotient of <a>/<b> and <c>/<d>, as an exact value?"),
        lambda a, b, c, d: Fraction(a * d, b * c),
        lambda a, b, c, d: a % b != 0 and c % d != 0,
    ),
    Template(
        "part_of_the_rest",
        "fractions",
        "medium",
        {"a": (3, 7), "b": (3, 7)},
        (
            "Somebody eats 1/<a> of a cake, and later 1/<b> of what is left. Which fraction of the cake remains?",
            "A tank loses 1/<a> of its water, then 1/<b> of the rest. What fraction of the water is still in it?",
        ),
        lambda a, b: Fraction(a - 1, a) * Fraction(b - 1, b),
    ),
    Template(
        "fraction_between",
        "fractions",
        "hard",
        {"a": (1, 6), "b": (3, 9), "c": (1, 6), "d": (3, 9)},
        (
            "Which number lies exactly in the middle between <a>/<b> and <c>/<d>?",
            "Find the mean of <a>/<b> and <c>/<d> as a fraction in lowest terms.",
        ),
        lambda a, b, c, d: (Fraction(a, b) + Fraction(c, d)) / 2,
        lambda a, b, c, d: a < b and c < d and a * d != b * c,
        held_out=True,
    ),
)

PERCENTAGES = (
    Template(
        "percent_of",
        "percentages",
        "easy",
        {"p": (3, 19), "a": (4, 40)},
        ("What is <p5>% of <a20>?", "Of <a20> seeds, <p5>% sprout. How many seeds sprout?"),
        lambda p, a: p * a,
    ),
    Template(
        "price_after_discount",
        "percentages",
        "easy",
        {"p": (1, 9), "a": (3, 30)},
        (
            "A coat costs <a10> dollars and is sold for <p10>% less. What is the new price in dollars?",
            "The price of a lamp is <a10> dollars. After a discount of <p10>%, how many dollars does it cost?",
        ),
        lambda p, a: a * (10 - p),
    ),
    Template(
        "up_then_down",
        "percentages",
        "medium",
        {"p": (1, 5), "q": (1, 5), "a": (2, 9)},
        (
            "A share worth <a100> dollars rises by <p10>% and then falls by <q10>%. What is it worth now, in dollars?",
            "A village of <a100> people grows by <p10>%, then shrinks by <q10>%. How many people live there now?",
        ),
        lambda p, q, a: a * (10 + p) * (10 - q),
    ),
    Template(
        "original_price",
        "percentages",
        "hard",
        {"p": (1, 9), "a": (2, 40)},
        (
            "After a discount of <p10>%, a bicycle costs <price> dollars. What did it cost before, in dollars?",
            "A number was made <p10>% smaller and is now <price>. What was it before?",
        ),
        lambda p, a: a * 10,
        held_out=True,
    ),
)

SEQUENCES = (
    Template(
        "arithmetic_term",
        "sequences",
        "easy",
        {"a": (-9, 20), "d": (2, 12), "n": (9, 30)},
        (
            "A sequence starts with <a>, and each term is <d> more than the one before. What is its term number <n>?",
            "The first term of an arithmetic sequence is <a>, its common difference is <d>. Find term number <n>.",
        ),
        lambda a, d, n: a + (n - 1) * d,
    ),
    Template(
        "geometric_term",
        "sequences",
        "medium",
        {"a": (2, 9), "r": (2, 4), "n": (5, 8)},
        (
            "Each term of a sequence is <r> times the one before; the first is <a>. What is term number <n>?",
            "A geometric sequence has the first term <a> and the ratio <r>. Which number is its term number <n>?",
        ),
        lambda a, r, n: a * r ** (n - 1),
    ),
    Template(
        "recursive_term",
        "sequences",
        "hard",
        {"a": (1, 6), "b": (1, 9), "n": (7, 10)},
        (
            "Let x1 = <a>, x2 = <b>, and let each later term be the sum of the two before. What is x<n>?",
            "A list starts <a>, <b>; from there on every entry is the sum of the last two. Find entry number <n>.",
        ),
        lambda a, b, n: a * _fibonacci(n - 2) + b * _fibonacci(n - 1),
    ),
    Template(
        "arithmetic_sum",
        "sequences",
        "medium",
        {"a": (1, 20), "d": (2, 9), "n": (10, 25)},
        (
            "A theatre has <n> rows. The first row has <a> seats, each further row <d> more. How many seats are there?",
            "Find the sum of the first <n> terms of the arithmetic sequence with first term <a> and difference <d>.",
        ),
        lambda a, d, n: n * (2 * a + (n - 1) * d) // 2,
        held_out=True,
    ),
)

DIVISIBILITY = (
    Template(
        "greatest_common_divisor",
        "divisibility",
        "easy",
        {"a": (24, 240), "b": (24, 240)},
        (
            "What is the greatest common divisor of <a> and <b>?",
            "Which is the largest integer that divides <a> and <b>?",
        ),
        math.gcd,
        lambda a, b: math.gcd(a, b) > 3 and a != b,
    ),
    Template(
        "least_common_multiple",
        "divisibility",
        "medium",
        {"a": (8, 60), "b": (8, 60)},
        (
            "Two lights flash every <a> and every <b> seconds. Both flash now. After how many seconds do they next "
            "flash together?",
            "Find the smallest positive integer that is a multiple of both <a> and <b>.",
        ),
        math.lcm,
        lambda a, b: 1 < math.gcd(a, b) < min(a, b),
    ),
    Template(
        "number_of_divisors",
        "divisibility",
        "hard",
        {"p": (1, 4), "q": (1, 3), "r": (0, 1)},
        ("How many positive divisors does <product> have?", "Count the positive integers that divide <product>."),
        lambda p, q, r: (p + 1) * (q + 1) * (r + 1),
        lambda p, q, r: p + q > 2,
    ),
    Template(
        "multiples_in_range",
        "divisibility",
        "medium",
        {"a": (10, 200), "b": (300, 900), "k": (6, 17)},
        (
            "How many multiples of <k> are there from <a> to <b>, both included?",
            "Count the integers n with <a> <= n <= <b> that <k> divides.",
        ),
        lambda a, b, k: b // k - (a - 1) // k,
        held_out=True,
    ),
)

MODULAR = (
    Template(
        "remainder_of_product",
        "modular",
        "easy",
        {"a": (20, 99), "b": (20, 99), "m": (6, 19)},
        (
            "What is the remainder when <a> * <b> is divided by <m>?",
            "Compute <a> * <b> modulo <m>.",
        ),
        lambda a, b, m: (a % m) * (b % m) % m,
        held_out=True,
    ),
    Template(
        "remainder_of_power",
        "modular",
        "medium",
        {"a": (2, 9), "n": (20, 99), "m": (7, 23)},
        ("What is the remainder of <a>^<n> when divided by <m>?", "Compute <a>^<n> modulo <m>."),
        pow,
        held_out=True,
    ),
    Template(
        "clock",
        "modular",
        "medium",
        {"a": (1, 12), "h": (50, 900)},
        (
            "A clock with the hours 1 to 12 shows <a> o'clock. Which hour does it show <h> hours later?",
            "It is <a> o'clock on a 12-hour clock. What hour, from 1 to 12, does the clock show after <h> hours?",
        ),
        lambda a, h: (a + h - 1) % 12 + 1,
        held_out=True,
    ),
    Template(
        "inverse",
        "modular",
        "hard",
        {"a": (2, 12), "m": (7, 31)},
        (
            "Find the integer x with 1 <= x < <m> for which <a> * x leaves the remainder 1 when divided by <m>.",
            "What is the inverse of <a> modulo <m>, as a positive number smaller than <m>?",
        ),
        lambda a, m: pow(a, -1, m),
        lambda a, m: math.gcd(a, m) == 1 and a < m,
        held_out=True,
    ),
)


def _fibonacci(n: int) -> int:
    before, now = 0, 1
    for _ in range(n - 1):
        before, now = now, before + now
    return now if n else 0


TEMPLATES = (*ARITHMETIC, *FRACTIONS, *PERCENTAGES, *SEQUENCES, *DIVISIBILITY, *MODULAR)
