"""What math-verify says about two expressions, and what is refused although it agrees.

Runs in the worker process only: sympy cannot be interrupted in a thread, and some short expressions never end.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from math_verify import verify
from sympy.functions.elementary.hyperbolic import HyperbolicFunction
from sympy.functions.elementary.trigonometric import TrigonometricFunction

from sdpo_mlx.tasks.math.latex import latex_of

MOST_BITS = 200_000
_LONGEST = 400
_DIGITS = 50
_ROUNDED_DIGITS = 6  # as many as math-verify compares
_OR = re.compile(r"\\text\{or\}|\\lor(?![a-z])")
_AND = re.compile(r"\\text\{and\}|\\land(?![a-z])|\\quad|(?<=[^,\[(])[,;](?=[^\])]*[<>=]|[^\])]*\\[lgn]e)")
_POINTS = ((1, 1), (4, -1), (11, 1))
_SMOOTH = (sympy.exp, sympy.log, TrigonometricFunction, HyperbolicFunction)
_CONFIG = ConversionConfig(lowercase_symbols=False)
_DECIMAL = re.compile(r"-?\s*[0-9]*\.[0-9]+")
_LITERAL = re.compile(r"(-?)\s*(?:([0-9]+(?:\.[0-9]+)?)|\\frac\{([0-9]+)\}\{([0-9]*[1-9][0-9]*)\})")


def equal(right: str, given: str) -> bool:
    """Whether two values are the same; a rounded number only where the right one is rounded."""
    one, two = expression(right), expression(given)
    if one is None or two is None or not _small(one) or not _small(two):
        return False
    if _DECIMAL.fullmatch(right.strip()) and not re.search(r"\.[0-9]", given) and _rounds_to(right.strip(), two):
        return True
    if _indefinite(one) != _indefinite(two):
        return False  # the constant is missing
    one, two = one.doit(), two.doit()
    said = verify(one, two, timeout_seconds=None)
    return not _told_apart(one, two) if said else _same_everywhere(one, two)


def _indefinite(found: Any) -> bool:
    return any(len(limits) == 1 for integral in found.atoms(sympy.Integral) for limits in integral.limits)


def readable(text: str) -> bool:
    """Whether math-verify can read a value."""
    return expression(text) is not None


def too_large(text: str) -> bool:
    """Whether a value is a number too large to be compared."""
    found = expression(text)
    return found is not None and not _small(found)


def terminating(text: str) -> bool:
    """Whether a value is a number that a decimal can state exactly."""
    found = expression(text)
    value = sympy.nsimplify(found.doit()) if found is not None and _small(found) and not found.free_symbols else None
    return bool(value is not None and value.is_Rational and not set(sympy.factorint(value.q)) - {2, 5})


def same_equation(one: tuple[str, str], two: tuple[str, str]) -> bool:
    """Whether two equations are the same: one a multiple of the other, or math-verify finds the same solutions."""
    sides = [expression(text) for text in (*one, *two)]
    if any(side is None or not _small(side) for side in sides):
        return False
    left, right = sides[0] - sides[1], sides[2] - sides[3]
    if left.free_symbols != right.free_symbols:
        return False
    ratio = sympy.simplify(left / right)
    if not ratio.free_symbols:
        return bool(ratio.is_finite and ratio.is_nonzero)
    first, second = (sympy.Eq(*pair, evaluate=False) for pair in (sides[:2], sides[2:]))
    return bool(verify(first, second, timeout_seconds=None))


def same_solutions(right: str, given: str) -> bool:
    """Whether inequalities, intervals and unions hold the same numbers, or are one relation of unknowns."""
    found = [_relation_or_set(right), _relation_or_set(given)]
    if any(one is None for one in found):
        return False
    relations = [one for one in found if not isinstance(one, sympy.Set)]
    names = relations[0].free_symbols if relations else set()
    if len(relations) == 2 and (names != relations[1].free_symbols or len(names) > 1):
        return names == relations[1].free_symbols and bool(verify(*relations, timeout_seconds=None))
    sets = [_as_set(one) for one in found]
    if any(one is None for one in sets):
        return bool(found[0] == found[1])
    first, second = (sympy.simplify(one.doit()) for one in sets)
    return first == second or (bool(verify(first, second, timeout_seconds=None)) and _same_ends(first, second))


def _same_ends(first: Any, second: Any) -> bool:
    ends = [sorted(found.boundary, key=float) for found in (first, second)]
    return len(ends[0]) == len(ends[1]) and not any(_told_apart(a, b) for a, b in zip(*ends, strict=True))


@lru_cache(4_096)
def expression(text: str) -> Any:
    """The expression of sympy, None if it cannot be read."""
    if literal := _LITERAL.fullmatch(text):
        number = sympy.Rational(literal[2] or 0) if literal[2] else sympy.Rational(int(literal[3]), int(literal[4]))
        return -number if literal[1] else number
    if len(text) > _LONGEST:
        return None
    try:
        latex = latex_of(text)
        found = latex2sympy(
            latex,
            is_real=True if not re.search(r"(?<![A-Za-z\\])I(?![A-Za-z])", latex) else None,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=_CONFIG,
        )
        return _adjusted(found) if isinstance(found, sympy.Expr) else None
    except Exception:  # the parser raises bare exceptions, sympy any kind
        return None


def _adjusted(found: Any) -> Any:
    """Double factorials by name; the odd root of a negative number is the real one, as in school."""
    found = found.replace(
        lambda part: getattr(part.func, "__name__", "") == "\\text{doublefactorial}",
        lambda part: sympy.factorial2(part.args[0]),
    )
    return found.replace(_is_odd_root, lambda part: -sympy.Pow(-part.base, part.exp))


def _is_odd_root(part: Any) -> bool:
    return bool(
        part.is_Pow
        and part.exp.is_Rational
        and part.exp.p % 2
        and part.exp.q % 2
        and part.exp.q > 1
        and part.base.is_negative
    )


def _small(found: Any) -> bool:
    """Whether no whole number in it is too large to be worked out."""
    try:
        return _bits(found) <= MOST_BITS
    except (ValueError, OverflowError, TypeError, AttributeError):
        return False


def _bits(part: Any) -> float:
    """Return an upper bound for the binary digits that evaluating a part may take."""
    if part.is_Rational:
        return float(max(abs(part.p).bit_length(), part.q.bit_length()))
    inner = [_bits(argument) for argument in part.args]
    name = part.func.__name__
    if part.is_Pow or name == "exp":
        base, exponent = (inner[0], part.exp) if part.is_Pow else (2.0, part.args[0])
        if not exponent.is_number:
            return max(inner)
        size = abs(complex(exponent)) if inner[-1] < 60 else math.inf
        letters = part.is_Pow and not part.base.is_number
        return max(base, size * 100 if letters and size > 50 else base * size)
    if name in ("factorial", "factorial2", "gamma", "binomial") and part.args[0].is_number:
        size = abs(complex(part.args[0])) if inner[0] < 40 else math.inf
        return size * math.log2(size + 2)
    return sum(inner) if inner else 1.0


def _told_apart(one: Any, two: Any, known: bool = False) -> bool:
    """Whether two expressions differ when worked out to 50 digits; math-verify looks at fifteen places."""
    names = sorted(one.free_symbols | two.free_symbols, key=lambda symbol: symbol.name)
    for shift, sign in _POINTS if names else _POINTS[:1]:
        point = {name: sign * sympy.Rational(7 * place + shift, 5 + 2 * place) for place, name in enumerate(names, 1)}
        first, second = (_number(found, point) for found in (one, two))
        if first is None or second is None:
            if known:
                return True
            continue
        gap = abs(first - second)
        if gap > max(abs(first), abs(second)) * sympy.Float(10) ** (-_DIGITS + 15):
            return True
    return False


def _same_everywhere(one: Any, two: Any) -> bool:
    """Whether two smooth expressions, which math-verify could not simplify to one, agree at every point tried."""
    parts = one.atoms(sympy.Function) | two.atoms(sympy.Function)
    if not (
        one.free_symbols and one.free_symbols == two.free_symbols and all(isinstance(part, _SMOOTH) for part in parts)
    ):
        return False
    return not _told_apart(one, two, known=True)


def _number(found: Any, point: dict[Any, Any]) -> Any:
    try:
        value = found.doit().subs(point).evalf(_DIGITS, maxn=2_000)
    except Exception:
        return None
    return (
        value
        if value.is_number and value.is_finite and value.is_comparable is not None and not value.has(sympy.nan)
        else None
    )


def _rounds_to(right: str, given: Any) -> bool:
    """Whether an irrational number rounds to a right answer of at least six digits."""
    digits = right.replace(" ", "").lstrip("-").replace(".", "").lstrip("0")
    if len(digits) < _ROUNDED_DIGITS or given.free_symbols or given.is_rational:
        return False
    places = len(right.partition(".")[2])
    value = _number(given, {})
    if value is None or not value.is_real or sympy.nsimplify(given.doit()).is_Rational:
        return False
    return abs(Fraction(str(value)) - Fraction(right.replace(" ", ""))) * 2 <= Fraction(1, 10**places)


def _relation_or_set(text: str) -> Any:
    """What latex2sympy reads from an inequality, an interval or a union; parts joined by `or` as a union of sets."""
    if len(text) > _LONGEST:
        return None
    if "\\pm" in text:
        text = " \\text{and} ".join(text.replace("\\pm", sign) for sign in "+-") if "\\ne" in text else text
    for joint, joined in ((_OR, sympy.Union), (_AND, sympy.Intersection)):
        pieces = [piece.strip(" ,;") for piece in joint.split(text)]
        if len(pieces) > 1:
            sets = [_as_set(_relation_or_set(piece)) for piece in pieces if piece]
            return None if any(found is None for found in sets) else joined(*sets)
    for short, sign in (("<=", "\\le "), (">=", "\\ge "), ("!=", "\\ne ")):
        text = text.replace(short, sign)
    text = re.sub(r"(?<=[)\]}])\s*U\s*(?=[(\[])", r"\\cup ", text)
    text = re.sub(r"^\s*\\?[A-Za-z]+(?:_\{[^{}]*\})?\s*\\in(?![A-Za-z])", "", text)
    text = text.replace("+\\infty", "\\infty")
    try:
        found = latex2sympy(
            latex_of(text), is_real=True, convert_degrees=False, normalization_config=None, conversion_config=_CONFIG
        )
    except Exception:
        return None
    return (
        found if isinstance(found, sympy.Set | sympy.core.relational.Relational | sympy.logic.boolalg.Boolean) else None
    )


def _as_set(found: Any) -> Any:
    if found is None or isinstance(found, sympy.Set):
        return found
    if len(found.free_symbols) != 1:
        return None
    try:
        return found.as_set()
    except Exception:
        return None
