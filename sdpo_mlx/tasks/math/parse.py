"""A mathematical answer read without executing anything: LaTeX or plain text to an exact value.

One expression is read by recursive descent over at most 400 characters and 40 levels. What the grammar does not
know (integrals, logarithms, words) is a ValueError: unreadable here, which says nothing about its truth.
"""

from __future__ import annotations

import math
import re
import unicodedata
from fractions import Fraction

from sdpo_mlx.tasks.math.algebra import Quotient, TooBigError, add, invert, letter, multiply, number, power

LONGEST = 400
_DEEPEST = 40
_MOST_DIGITS = 200

_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+(?![0-9.]))?)"
    r"|(?P<command>\\[A-Za-z]+)|(?P<word>[A-Za-z]+)|(?P<sign>\*\*|[-+*/^(){}\[\]|!%_=,])|(?P<space>\s+)"
)
_CONSTANTS = {"\\pi": "pi", "pi": "pi", "\\infty": "oo", "infinity": "oo", "inf": "oo", "oo": "oo"}
_GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "rho", "sigma", "tau", "phi", "omega")
_BRACKETS = {"(": ")", "{": "}", "[": "]"}
_TIMES = ("*", "\\cdot", "\\times")
_OVER = ("/", "\\div")
_LONGEST_PRODUCT = 3  # letters in a row that are read as a product; more are a word
_SUPERSCRIPTS = str.maketrans(
    {"⁰": "0", "¹": "1", "²": "2", "³": "3", "⁴": "4", "⁵": "5", "⁶": "6", "⁷": "7", "⁸": "8"}
)
_SYMBOLS = str.maketrans(
    {
        "×": "\\times ",
        "·": "\\cdot ",
        "⋅": "\\cdot ",
        "∙": "\\cdot ",
        "÷": "/",
        "−": "-",
        "–": "-",
        "π": "\\pi ",
        "√": "\\sqrt ",
        "∞": "\\infty ",
        "±": "\\pm ",
        "∪": "\\cup ",
        "°": "\\degree ",
        "≤": "\\le ",
        "≥": "\\ge ",
        "⁄": "/",
    }
)
_SAME = (
    (re.compile(r"\\left\b|\\right\b|\\[!,;:]|\\displaystyle\b|\\quad\b|\\qquad\b|~|\\ "), " "),
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|\\circ\b"), " "),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\(?:leq|leqslant)(?![a-z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![a-z])"), r"\\ge"),
    (re.compile(r"\\lbrace\b"), r"\\{"),
    (re.compile(r"\\rbrace\b"), r"\\}"),
    (re.compile(r"\{,\}"), ","),
)


def plain(text: str) -> str:
    """One spelling for many: symbols of Unicode as LaTeX, spacing commands and degree signs gone."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸]+", lambda found: "^{" + found[0].translate(_SUPERSCRIPTS) + "}", text)
    text = unicodedata.normalize("NFKC", text.translate(_SYMBOLS)).translate(_SYMBOLS)
    for pattern, other in _SAME:
        text = pattern.sub(other, text)
    return text.strip()


def expression(text: str) -> Quotient:
    """Return the value of one expression in the spelling of `plain`. Raises ValueError if it cannot be read."""
    if len(text) > LONGEST:
        raise TooBigError("the expression is too long")
    try:
        return _Reader(_tokens(text)).whole()
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError("the expression has no value") from error


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise ValueError("a sign cannot be read")
        position = found.end()
        tokens.append(" " if found.lastgroup == "space" else found[0])
    return tokens


class _Reader:
    """Recursive descent; a space matters only between a whole number and a fraction of numbers."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0  # open absolute values: the next bar closes one

    def whole(self) -> Quotient:
        value = self.sum()
        if self.peek():
            raise ValueError("something is left over")
        return value

    def peek(self) -> str:
        while self.at < len(self.tokens) and self.tokens[self.at] == " ":
            self.at += 1
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token != wanted):
            raise ValueError("the expression is not finished")
        self.at += 1
        return token

    def sum(self) -> Quotient:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise TooBigError("the expression is nested too deep")
        total = self.signed()
        while self.peek() in ("+", "-"):
            sign = self.take()
            part = self.product()
            total = add(total, part if sign == "+" else _negative(part))
        self.depth -= 1
        return total

    def signed(self) -> Quotient:
        sign = 1
        while self.peek() in ("+", "-"):
            sign *= -1 if self.take() == "-" else 1
        value = self.product()
        return value if sign > 0 else _negative(value)

    def product(self) -> Quotient:
        total, counted = self.factor()
        while True:
            token = self.peek()
            if token in _TIMES or token in _OVER:
                self.take()
                sign = -1 if self.peek() == "-" else 1
                if sign < 0:
                    self.take()
                part, _ = self.factor()
                part = part if sign > 0 else _negative(part)
                total, counted = multiply(total, invert(part) if token in _OVER else part), False
            elif token and (token[0].isalnum() or token[0] in "\\(.{|") and not (token == "|" and self.bars):
                if token[0] in "0123456789.":
                    raise ValueError("two numbers stand side by side")
                mixed = counted and token == "\\frac"
                part, plain_fraction = self.factor()
                total = add(total, part) if mixed and plain_fraction else multiply(total, part)
                counted = False
            else:
                return total

    def factor(self) -> tuple[Quotient, bool]:
        """Return a value with its powers, and whether it may be part of a mixed number such as 2 1/2."""
        start = self.at
        mixed = self.mixed()
        if mixed is not None:
            return mixed, False
        value = self.atom()
        simple = self.tokens[start].isdigit() or self.tokens[start] == "\\frac"
        while self.peek() in ("^", "**", "!", "%"):
            simple = False
            token = self.take()
            if token == "!":
                value = _factorial(value)
            elif token == "%":
                value = multiply(value, number(Fraction(1, 100)))
            else:
                value = power(value, self.exponent())
        return value, simple

    def mixed(self) -> Quotient | None:
        """`2 1/2`: a whole number, a space and a fraction of whole numbers."""
        parts = self.tokens[self.at : self.at + 5]
        if len(parts) < 5 or parts[1] != " " or parts[3] != "/":
            return None
        if not all(parts[i].isdigit() for i in (0, 2, 4)):
            return None
        self.at += 5
        return add(_number(parts[0]), multiply(_number(parts[2]), invert(_number(parts[4]))))

    def exponent(self) -> Quotient:
        sign = 1
        while self.peek() in ("-", "+"):
            sign *= -1 if self.take() == "-" else 1
        value = self.atom()
        if self.peek() in ("^", "**"):
            self.take()
            self.depth += 1
            if self.depth > _DEEPEST:
                raise TooBigError("the expression is nested too deep")
            value = power(value, self.exponent())
        return value if sign > 0 else _negative(value)

    def atom(self) -> Quotient:
        token = self.take()
        if token[0] in "0123456789.":
            return _number(token)
        if token in _BRACKETS:
            value = self.sum()
            self.take(_BRACKETS[token])
            return value
        return self.command(token)

    def command(self, token: str) -> Quotient:
        if token == "|":
            return self.absolute()
        if token == "\\frac":
            over = self.argument()
            return multiply(over, invert(self.argument()))
        if token in ("\\sqrt", "sqrt"):
            return self.root()
        if token in ("\\binom", "\\dbinom"):
            return _binomial(self.argument(), self.argument())
        return self.named(token)

    def argument(self) -> Quotient:
        """Return what follows a command: a group, or one digit or letter as in `\\frac12`."""
        token = self.peek()
        if token == "{" or token.startswith("\\"):
            return self.atom()
        self.take()
        if len(token) > 1:
            self.at -= 1
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
            self.at += 1
        return _number(token[0]) if token[0].isdigit() else self.named(token[0])

    def root(self) -> Quotient:
        degree = number(Fraction(2))
        if self.peek() == "[":
            degree = self.atom()
        # LaTeX takes one digit after a bare `\\sqrt`; people who leave the braces out mean the whole number.
        return power(self.atom(), invert(degree))

    def absolute(self) -> Quotient:
        self.bars += 1
        value = self.sum()
        self.bars -= 1
        self.take("|")
        known = value.decimal()
        if known is None:
            raise ValueError("its absolute value is not known")
        return _negative(value) if known < 0 else value

    def named(self, token: str) -> Quotient:
        if token in _CONSTANTS:
            return letter(_CONSTANTS[token])
        if token.startswith("\\"):
            if token[1:] not in _GREEK:
                raise ValueError("a command is not known")
            return letter(token[1:])
        if not token.isalpha() or not token.isascii() or len(token) > _LONGEST_PRODUCT:
            raise ValueError("a word is no expression")
        if self.peek() == "_":
            raise ValueError("indices are not known")
        if len(token) > 1:  # the powers that follow belong to the last letter
            self.tokens[self.at - 1 : self.at] = [token[0], token[1:]]
        return letter(token[0])


def _number(token: str) -> Quotient:
    mantissa, _, exponent = token.lower().partition("e")
    if len(mantissa) > _MOST_DIGITS or len(exponent) > 4 or abs(int(exponent or 0)) > _MOST_DIGITS:
        raise TooBigError("the number has too many digits")
    return number(Fraction(f"0{mantissa}".rstrip(".")) * Fraction(10) ** int(exponent or 0))


def _negative(value: Quotient) -> Quotient:
    return multiply(number(Fraction(-1)), value)


def _factorial(value: Quotient) -> Quotient:
    whole = value.rational
    if whole is None or whole.denominator != 1 or not 0 <= whole <= 300:
        raise ValueError("its factorial is not known")
    return number(Fraction(math.factorial(int(whole))))


def _binomial(over: Quotient, under: Quotient) -> Quotient:
    n, k = over.rational, under.rational
    if n is None or k is None or n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= 300:
        raise ValueError("the binomial is not known")
    return number(Fraction(math.comb(int(n), int(k))))
