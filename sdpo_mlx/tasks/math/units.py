"""Units and currencies around a number: taken off, and told apart where both answers state one."""

from __future__ import annotations

import re

_NAMES = {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "in": "inch inches",
    "ft": "ft foot feet",
    "mile": "mile mi",
    "mg": "mg milligram",
    "g": "g gram",
    "kg": "kg kilogram",
    "ml": "ml milliliter millilitre",
    "l": "liter litre",
    "s": "s sec second",
    "min": "min minute",
    "h": "h hr hour",
    "day": "day",
    "week": "week",
    "year": "year yr",
    "dollar": "dollar usd",
    "cent": "cent",
    "euro": "euro eur",
    "pound": "pound",
}
_KNOWN = {spelling: unit for unit, spellings in _NAMES.items() for spelling in spellings.split()}
_SIGNS = {"\\$": "dollar", "$": "dollar", "€": "euro", "£": "pound"}
_UNIT_TEXT = re.compile(r"\s*\\(?:text|mathrm|textrm|mbox|textbf)\s*\{([^{}]*)\}\s*((?:\^\s*\{?[0-9]\}?)?)$")
_UNIT_WORD = re.compile(
    r"(?<=[0-9)}\s])\s*(?<![A-Za-z\\])([A-Za-z]{2,}(?:[ /][A-Za-z]+){0,3}|[mgshl])\s*((?:\^\s*\{?[0-9]\}?)?)$"
)
_NO_UNIT = {"is", "isn", "not", "or", "and", "but", "to", "no", "plus", "minus", "times"}
_READ_ALIKE = ("pi", "sqrt", "oo", "inf", "infinity")


def without_unit(text: str) -> tuple[str, str, bool]:
    """Return the number's text, its unit in one spelling (blank for none), and whether it was a percentage."""
    text, unit = text.strip(), ""
    for sign, name in _SIGNS.items():
        negative = text.startswith("-" + sign)
        if negative or text.startswith(sign):
            text, unit = ("-" if negative else "") + text[len(sign) + negative :].strip(), name
            break
    if text.endswith("%"):
        return text[:-1].strip(), unit, True
    for pattern in (_UNIT_TEXT, _UNIT_WORD):
        found = pattern.search(text)
        if found and found.start() and re.search(r"[0-9]", text[: found.start()]):
            name = found[1].strip().casefold()
            if name in ("percent", "per cent"):
                return text[: found.start()].strip(), unit, True
            if _is_unit(found[1].strip(), pattern is _UNIT_TEXT):
                return text[: found.start()].strip(), unit or _canonical(name, found[2]), False
    return text, unit, False


def _is_unit(name: str, stated: bool) -> bool:
    """Return words and known short forms are units; `xy` after a number is a product."""
    spelling = name.casefold()
    if _NO_UNIT & set(spelling.split()):
        return False
    if stated:
        return True
    return spelling not in _READ_ALIKE and (len(name) > 3 or _single(spelling) in _KNOWN or " " in name or "/" in name)


def _single(name: str) -> str:
    return name if name in _KNOWN else name.removesuffix("s")


def _canonical(name: str, raised: str) -> str:
    """Blank for a word that is no measure, such as `apples`: such words are never told apart."""
    square = {"square": "2", "sq": "2", "cubic": "3"}.get(name.partition(" ")[0], "")
    unit = _KNOWN.get(_single(name.partition(" ")[2] if square else name), "")
    power = square or "".join(sign for sign in raised if sign.isdigit())
    return unit + (power if power != "1" else "") if unit else ""
