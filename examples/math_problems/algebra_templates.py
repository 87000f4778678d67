"""Templates about unknowns, shapes and chance: equations, systems, quadratics, geometry, counting, rates."""

from __future__ import annotations

import math
from fractions import Fraction

from template import Template, root

LINEAR = (
    Template(
        "one_step_line",
        "linear_equations",
        "easy",
        {"a": (2, 12), "b": (-20, 20), "x": (-9, 15)},
        ("Solve <a>x + <b> = <right> for x.", "For which x is <a>x + <b> equal to <right>?"),
        lambda a, b, x: x,
        lambda a, b, x: b > 0 and x not in (0, 1),
    ),
    Template(
        "both_sides",
        "linear_equations",
        "medium",
        {"a": (4, 12), "b": (1, 30), "c": (1, 3), "d": (1, 60)},
        ("Solve <a>x + <b> = <c>x + <d>.", "Find x such that <a>x + <b> = <c>x + <d>."),
        lambda a, b, c, d: Fraction(d - b, a - c),
        lambda a, b, c, d: d != b,
    ),
    Template(
        "age_riddle",
        "linear_equations",
        "medium",
        {"k": (2, 5), "x": (4, 15)},
        (
            "A mother is <k> times as old as her son. Together they are <together> years old. How old is the son?",
            "One number is <k> times another, and their sum is <together>. What is the smaller number?",
        ),
        lambda k, x: x,
    ),
    Template(
        "fraction_line",
        "linear_equations",
        "hard",
        {"a": (2, 9), "b": (1, 9), "c": (2, 9)},
        ("Solve x/<a> + <b> = x/<c> for x.", "For which x do x/<a> + <b> and x/<c> agree?"),
        lambda a, b, c: Fraction(b * a * c, a - c),
        lambda a, b, c: a != c,
        held_out=True,
    ),
)

SYSTEMS = (
    Template(
        "sum_and_difference",
        "systems",
        "easy",
        {"x": (5, 60), "y": (2, 40)},
        (
            "Two numbers have the sum <sum> and the difference <difference>. Give them as (larger, smaller).",
            "Solve x + y = <sum>, x - y = <difference>. Give the answer as (x, y).",
        ),
        lambda x, y: (x, y),
        lambda x, y: x > y,
        held_out=True,
    ),
    Template(
        "two_by_two",
        "systems",
        "medium",
        {"a": (2, 7), "b": (2, 7), "c": (2, 7), "d": (2, 7), "x": (1, 9), "y": (1, 9)},
        (
            "Solve the system <a>x + <b>y = <first>, <c>x + <d>y = <second>. Give the answer as (x, y).",
            "Which pair (x, y) satisfies both <a>x + <b>y = <first> and <c>x + <d>y = <second>?",
        ),
        lambda a, b, c, d, x, y: (x, y),
        lambda a, b, c, d, x, y: a * d != b * c,
        held_out=True,
    ),
    Template(
        "heads_and_legs",
        "systems",
        "medium",
        {"x": (3, 20), "y": (3, 20)},
        (
            "A farm has hens and rabbits with <heads> heads and <legs> legs in all. How many rabbits are there?",
            "<heads> carts with two or four wheels have <legs> wheels in all. How many carts have four wheels?",
        ),
        lambda x, y: y,
        held_out=True,
    ),
    Template(
        "coins",
        "systems",
        "hard",
        {"x": (3, 20), "y": (3, 20)},
        (
            "A purse holds <heads> coins of 5 and 20 cents worth <worth> cents in all. How many are 20-cent coins?",
            "Stamps of 5 and of 20 cents are bought: <heads> stamps for <worth> cents. How many of them cost 20 cents?",
        ),
        lambda x, y: y,
        held_out=True,
    ),
)

QUADRATICS = (
    Template(
        "whole_roots",
        "quadratics",
        "medium",
        {"r": (-9, -1), "s": (1, 9)},
        (
            "Find all solutions of x^2 = <total>x + <minus>. Give them separated by a comma.",
            "For which values of x is x^2 - <total>x - <minus> = 0? Separate them by a comma.",
        ),
        lambda r, s: [r, s],
        lambda r, s: r + s > 1,
    ),
    Template(
        "positive_root",
        "quadratics",
        "medium",
        {"x": (4, 30), "d": (1, 12)},
        (
            "A rectangle is <d> cm longer than wide, and its area is <area> square cm. How many cm is it wide?",
            "A positive number times the number that is <d> larger gives <area>. What is the number?",
        ),
        lambda x, d: x,
    ),
    Template(
        "surd_roots",
        "quadratics",
        "hard",
        {"a": (1, 6), "n": (2, 20)},
        (
            "What is the larger solution of (x - <a>)^2 = <n>? Give the exact value.",
            "Find the largest x with (x - <a>)^2 = <n>, exactly.",
        ),
        lambda a, n: f"{a} + {root(n)}",
        lambda a, n: math.isqrt(n) ** 2 != n,
    ),
    Template(
        "vertex",
        "quadratics",
        "hard",
        {"p": (1, 9), "q": (-15, 30)},
        (
            "What is the smallest value that x^2 - <twice>x + <constant> takes for real x?",
            "Find the minimum of f(x) = x^2 - <twice>x + <constant> over the real numbers.",
        ),
        lambda p, q: q,
        lambda p, q: p * p + q > 0,
        held_out=True,
    ),
)

GEOMETRY = (
    Template(
        "rectangle",
        "geometry",
        "easy",
        {"a": (3, 40), "b": (3, 40)},
        (
            "A rectangle has sides of <a> cm and <b> cm. What is its perimeter in cm?",
            "How many metres of fence does a garden of <a> m by <b> m need all around?",
        ),
        lambda a, b: 2 * (a + b),
    ),
    Template(
        "triangle_area",
        "geometry",
        "easy",
        {"a": (3, 30), "h": (3, 30)},
        (
            "A triangle has a base of <a> cm and a height of <h> cm. What is its area in square cm?",
            "What is the area of a triangle whose base is <a> and whose height is <h>?",
        ),
        lambda a, h: Fraction(a * h, 2),
    ),
    Template(
        "hypotenuse",
        "geometry",
        "medium",
        {"a": (2, 12), "b": (2, 12)},
        (
            "The legs of a right triangle are <a> and <b>. How long is its hypotenuse, exactly?",
            "How far is the point (<a>, <b>) from the origin? Give the exact value.",
        ),
        lambda a, b: root(a * a + b * b),
    ),
    Template(
        "ring",
        "geometry",
        "hard",
        {"a": (5, 15), "b": (1, 4)},
        (
            "A circle of radius <b> is cut out of a circle of radius <a>. What is the area of the rest? Keep pi.",
            "Find the exact area between two circles with one centre and the radii <a> and <b>, in terms of pi.",
        ),
        lambda a, b: f"{a * a - b * b}\\pi",
        held_out=True,
    ),
)

COUNTING = (
    Template(
        "outfits",
        "counting",
        "easy",
        {"a": (2, 9), "b": (2, 9), "c": (2, 9)},
        (
            "A menu has <a> starters, <b> main dishes and <c> desserts. How many dinners of three courses are there?",
            "With <a> hats, <b> shirts and <c> scarves, how many ways are there to choose one of each?",
        ),
        lambda a, b, c: a * b * c,
    ),
    Template(
        "committees",
        "counting",
        "medium",
        {"n": (5, 12), "k": (2, 4)},
        (
            "In how many ways can <k> of <n> players be chosen, if their order does not count?",
            "How many subsets with <k> elements has a set of <n> elements?",
        ),
        math.comb,
    ),
    Template(
        "two_draws",
        "counting",
        "hard",
        {"r": (2, 9), "b": (2, 9)},
        (
            "A bag holds <r> red and <b> blue balls. Two are drawn without putting back. What is the probability that "
            "both are red?",
            "Of <r> red and <b> blue cards, two are taken at random, one after the other. With what probability are "
            "both red?",
        ),
        lambda r, b: Fraction(r * (r - 1), (r + b) * (r + b - 1)),
    ),
    Template(
        "two_dice",
        "counting",
        "medium",
        {"s": (3, 11), "n": (4, 10)},
        (
            "Two fair dice with the faces 1 to <n> are thrown. What is the probability that the sum is <s>?",
            "Two numbers from 1 to <n> are chosen independently at random. How likely is it that they add up to <s>?",
        ),
        lambda s, n: Fraction(min(s - 1, n) - max(1, s - n) + 1, n * n),
        lambda s, n: s <= 2 * n,
        held_out=True,
    ),
)

RATES = (
    Template(
        "distance",
        "rates",
        "easy",
        {"v": (12, 95), "t": (2, 9)},
        (
            "A train travels <v> km in an hour. How many km does it travel in <t> hours?",
            "A machine fills <v> bottles in a minute. How many bottles does it fill in <t> minutes?",
        ),
        lambda v, t: v * t,
    ),
    Template(
        "shared_cost",
        "rates",
        "easy",
        {"n": (3, 12), "p": (4, 25), "k": (2, 11)},
        (
            "<n> tickets cost <total> dollars. How many dollars do <k> tickets cost?",
            "<n> equal boxes weigh <total> kg. How many kg do <k> of them weigh?",
        ),
        lambda n, p, k: p * k,
        lambda n, p, k: n != k,
    ),
    Template(
        "working_together",
        "rates",
        "hard",
        {"a": (2, 12), "b": (2, 12)},
        (
            "One pump empties a pool in <a> hours, another in <b> hours. How many hours do both need together?",
            "Ann paints a fence in <a> hours, Bo in <b> hours. How many hours does it take them together?",
        ),
        lambda a, b: Fraction(a * b, a + b),
        lambda a, b: a != b,
    ),
    Template(
        "meeting",
        "rates",
        "medium",
        {"v": (3, 20), "w": (3, 20), "t": (2, 9)},
        (
            "Two cyclists <apart> km apart ride towards each other at <v> and <w> km an hour. After how many hours do "
            "they meet?",
            "Two walkers start <apart> km apart and come closer at <v> and <w> km an hour. How many hours pass until "
            "they meet?",
        ),
        lambda v, w, t: t,
        lambda v, w, t: v != w,
        held_out=True,
    ),
)

TEMPLATES = (*LINEAR, *SYSTEMS, *QUADRATICS, *GEOMETRY, *COUNTING, *RATES)
