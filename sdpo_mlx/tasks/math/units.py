"""Units, currencies, words that multiply, and other words around a number.

A unit is a product of bases with whole powers and the size in those bases, so that 5 m is 500 cm and 60 km/h no
60 mph. Words that are no units, such as `apples`, are kept: they tell two answers apart when both have them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

_PREFIXES = {"m": "1/1000", "c": "1/100", "d": "1/10", "k": "1e3", "M": "1e6", "µ": "1e-6", "n": "1e-9"}
# base: (symbols that take prefixes, which prefixes, names and their sizes in the base)
_MEASURES = {
    "metre": (
        "m",
        "mcdkµn",
        "meter metre inch=127/5000 in=127/5000 ft=381/1250 foot=381/1250 feet=381/1250 yd=1143/1250 yard=1143/1250"
        " mile=201168/125 mi=201168/125",
    ),
    "gram": (
        "g",
        "mkµ",
        "gram gramme gm ton=1e6 tonne=1e6",
    ),
    "second": ("s", "mµn", "sec second min=60 minute=60 h=3600 hr=3600 hour=3600 day=86400 week=604800"),
    "month": ("", "", "month year=12 yr=12 decade=120 century=1200"),
    "litre": ("L l", "mcd", "liter litre"),
    "gallon": ("", "", "gal gallon quart=1/4 qt=1/4 pint=1/8"),
    "dollar": ("", "", "dollar usd cent=1/100"),
    "euro": ("", "", "euro eur"),
    "pound": ("", "", "pound gbp lb lbs oz=1/16 ounce=1/16"),  # of money and of weight
    "yen": ("", "", "yen jpy"),
    "rupee": ("", "", "rupee rs inr"),
    "ruble": ("", "", "ruble"),
    "won": ("", "", "won"),
    "shekel": ("", "", "shekel"),
    "degree": ("", "", "degree deg"),
    "radian": ("", "", "radian rad"),
    "celsius": ("", "", "celsius"),
    "fahrenheit": ("", "", "fahrenheit"),
    "kelvin": ("K", "", "kelvin"),
    "newton": ("N", "kmM", "newton"),
    "joule": ("J", "kmM", "joule"),
    "calorie": ("cal", "k", "calorie"),
    "watt": ("W", "kmM", "watt"),
    "volt": ("V", "kmM", "volt"),
    "ampere": ("A", "kmµ", "ampere amp"),
    "ohm": ("", "", "ohm"),
    "coulomb": ("C", "mµ", "coulomb"),
    "hertz": ("Hz", "kM", "hertz"),
    "pascal": ("Pa", "kM", "pascal atm=101325 bar=1e5"),
    "tesla": ("T", "m", "tesla"),
    "farad": ("F", "mµn", "farad"),
    "henry": ("H", "m", "henry"),
    "mole": ("mol", "mk", "mole"),
    "electronvolt": ("eV", "kM", ""),
    "unit": ("", "", "unit"),
    "acre": ("", "", "acre"),
    "hectare": ("ha", "", "hectare"),
}
_LONG_PREFIXES = {
    "milli": "1/1000",
    "centi": "1/100",
    "deci": "1/10",
    "kilo": "1e3",
    "mega": "1e6",
    "micro": "1e-6",
    "nano": "1e-9",
}
_COMPOUND = {
    "mph": ("mile", "hour"),
    "kmh": ("km", "hour"),
    "kph": ("km", "hour"),
    "kmph": ("km", "hour"),
    "fps": ("foot", "s"),
}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
MULTIPLIERS = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "mln": 10**6,
    "billion": 10**9,
    "bn": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "lakh": 10**5,
    "crore": 10**7,
}
_RAISING = {"squared": 2, "cubed": 3}
_PERCENT = ("percent", "percentage", "pct")
# Words whose absence changes an answer, and words that say nothing.
# Words that make another answer of the same number, and words that say nothing.
_LIMIT_WORDS = """
not no none less more greater fewer least most than about approximately roughly nearly almost over under before after
negative minus
"""
_TELLING_WORDS = """
am pm north south east west northeast northwest southeast southwest left right up down above below clockwise
counterclockwise anticlockwise
"""
_SILENT_WORDS = "of the a an in each per total and is are exactly only"
_LIMITS = frozenset(_LIMIT_WORDS.split())
_TELLING = _LIMITS | frozenset(_TELLING_WORDS.split())
_SILENT = frozenset(_SILENT_WORDS.split())
_PIECE = re.compile(
    r"\\text\{(?P<text>[^{}]*)\}|(?P<degree>\^\{\\circ\})\s?(?:\\text\{(?P<scale>[CFcf])\}|(?P<letter>[CF])(?![A-Za-z]))?"
    r"|\^\{(?P<raised>-?[0-9])\}|(?P<plain>[A-Za-zµ]+|\\Omega)|(?P<joint>/|\\cdot|\\times|\*|%|\.|-)|[\s{}]+|(?P<other>.)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Unit:
    """A product of bases with their powers, and how many of it one is; no bases where none is stated."""

    bases: tuple[tuple[str, int], ...] = ()
    size: Fraction = Fraction(1)


@dataclass(frozen=True)
class Tail:
    """What stands around a number: its unit, the words that are none, a factor, a power and whether in percent."""

    unit: Unit = Unit()
    words: tuple[str, ...] = ()
    factor: int = 1
    power: int = 1
    percent: bool = False
    lone_letters: bool = field(default=False, compare=False)  # a unit that might as well be an unknown


def known_unit(word: str) -> tuple[dict[str, int], Fraction] | None:
    """The bases and the size of a unit's name, None if it is not known."""
    if word in _COMPOUND:
        over, under = (known_unit(name) for name in _COMPOUND[word])
        assert over is not None
        assert under is not None
        return over[0] | {name: -power for name, power in under[0].items()}, over[1] / under[1]
    for name in (word, word.casefold(), word.casefold().removesuffix("s"), word.casefold().removesuffix("es")):
        if name in _KNOWN:
            base, size = _KNOWN[name]
            return {base: 1}, size
    return None


def tail(text: str, money: str = "") -> Tail | None:
    """What a text behind a number says; None if a part of it is neither a unit nor a word."""
    reader = _Reader()
    if not all(reader.take(found) for found in _PIECE.finditer(text)):
        return None
    known = known_unit(money) if money and not reader.bases else None
    if known:
        reader.bases, reader.size = dict(known[0]), known[1]
    return reader.tail()


@dataclass
class _Reader:
    """One piece after the other: units with their powers, words that multiply, words."""

    bases: dict[str, int] = field(default_factory=dict)
    size: Fraction = Fraction(1)
    words: list[str] = field(default_factory=list)
    factor: int = 1
    power: int = 1
    percent: bool = False
    lone: bool = False
    _sign: int = 1
    _waiting: int = 1  # of `square` before a unit
    _last: str = ""  # name of the unit that a power belongs to

    def tail(self) -> Tail:
        """Return what was read."""
        bases = tuple(sorted((base, times) for base, times in self.bases.items() if times))
        return Tail(Unit(bases, self.size), tuple(self.words), self.factor, self.power, self.percent, self.lone)

    def take(self, found: re.Match[str]) -> bool:
        """Take one piece; False if it belongs to no unit and is no word."""
        if found["other"]:
            return False
        if found["raised"]:
            return self._raise(int(found["raised"]))
        if found["joint"]:
            self.percent = self.percent or found["joint"] == "%"
            self._sign = -1 if found["joint"] == "/" else self._sign
            return True
        scale = (found["scale"] or found["letter"] or "").upper()
        degree = {"": "degree", "C": "celsius", "F": "fahrenheit"}[scale] if found["degree"] else ""
        name = degree or found["text"] or found["plain"] or ""
        return self._name("ohm" if name == "\\Omega" else name, bool(found["plain"]))

    def _name(self, name: str, plain: bool) -> bool:
        small = name.casefold()
        first = not self.bases and not self.words
        if small in _PERCENT:
            self.percent = True
        elif small in MULTIPLIERS and first:
            self.factor *= MULTIPLIERS[small]
        elif small in _RAISING and first:
            self.power *= _RAISING[small]
        elif small in _POWERS:
            if small.endswith("ed") and self._last:
                return self._raise(_POWERS[small])
            self._waiting = _POWERS[small]
        elif small == "per":
            self._sign = -1
        elif name and (known := known_unit(name)) and not self.words:
            self._unit(name, *known)
            self.lone = self.lone or (plain and len(name) == 1)
        elif plain and len(name) < 3 and small not in _TELLING and small != "of":
            return False
        elif name and small not in _SILENT:
            self.words.append(stem(name))
        return True

    def _unit(self, name: str, bases: dict[str, int], size: Fraction) -> None:
        if "degree" in self.bases and name.casefold() in ("celsius", "fahrenheit"):
            self.bases.pop("degree")
        for base, times in bases.items():
            self.bases[base] = self.bases.get(base, 0) + self._sign * self._waiting * times
        self.size *= size ** (self._sign * self._waiting)
        self._last, self._waiting = name, 1

    def _raise(self, power: int) -> bool:
        known = known_unit(self._last)
        if known is None:
            return False
        for base, times in known[0].items():
            self.bases[base] += self._sign * times * (power - 1)
        self.size *= known[1] ** (self._sign * (power - 1))
        return True


def conversion(right: Unit, given: Unit) -> Fraction | None:
    """How many of the right unit are one of the given; one where either states none, None where they differ."""
    if not right.bases or not given.bases or right == given:
        return Fraction(1)
    return given.size / right.size if right.bases == given.bases else None


def same_words(right: tuple[str, ...], given: tuple[str, ...]) -> bool:
    """Whether the words around two numbers may mean the same: words may be left out, but none that tells apart."""
    one, two = set(right), set(given)
    if not one or not two:
        return not (two & _LIMITS)
    return (one <= two or two <= one) and not ((one ^ two) & _TELLING)


def stem(word: str) -> str:
    """A word in small letters, in the singular."""
    word = word.casefold().replace("'", "")
    if len(word) > 3 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _names() -> dict[str, tuple[str, Fraction]]:
    known: dict[str, tuple[str, Fraction]] = {}
    for base, (symbols, prefixes, names) in _MEASURES.items():
        for symbol in symbols.split():
            known[symbol] = (base, Fraction(1))
            known.update({prefix + symbol: (base, Fraction(_PREFIXES[prefix])) for prefix in prefixes})
        for name, _, size in (word.partition("=") for word in names.split()):
            known[name] = (base, Fraction(size or 1))
            if symbols and not size:
                known.update({long + name: (base, Fraction(times)) for long, times in _LONG_PREFIXES.items()})
    return known


_KNOWN = _names()
