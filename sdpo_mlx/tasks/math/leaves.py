"""Answers without parts: words, congruences, ratios and times, numbers with their base, values with their unit."""

from __future__ import annotations

import re

from sdpo_mlx.tasks.math.answer import Answer, bare, outside, split, tight
from sdpo_mlx.tasks.math.units import Tail, same_words, stem, tail

_BASED = re.compile(r"\(?(?:\\text\{)?([0-9A-Fa-f]+)\}?\)?_\{(?:\\text\{)?([0-9]{1,2}|[a-z]+)\}?\}")
_BASE_NAMES = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_BASES = {name: number for number, name in enumerate(_BASE_NAMES.split(), 2)}
_CHOICE = re.compile(r"\(?\s*(?:\\text\{([A-Za-z])\}|([A-Z]))\s*\)?")
_MONEY = re.compile(
    r"(-?)\s*(?:US|CA|AU|HK|NZ|\\text\{(?:USD|US|Rs|EUR|GBP)\})?\.?\s*"
    r"\\text\{(dollar|euro|pound|yen|rupee|ruble|won|shekel|cent)\}\s*(?=[-0-9.\\(])"
)
_CURRENCY_NAME = re.compile(r"(-?)\s*(?:\\text\{)?(usd|eur|gbp|inr|jpy|rs)\}?\.?\s*(?=[0-9])", re.IGNORECASE)
_TIME = re.compile(r"([0-9: ]+?)\s*(\\text\{[AaPp][Mm]\})")
_ALL_REALS = ("all real number", "all real", "all real x", "any real number", "every real number")
_PHRASE = re.compile(
    r"(?:\\text\{[^{}]*\}|[\s.,;:'!?()-]|[A-Z](?![A-Za-z])|a(?=\s)|[0-9]|_\{[0-9A-Za-z]+\}|\^\{[-+0-9]+\}|/)+"
)
_CONGRUENT = re.compile(r"^(.*)\\equiv(.*?)(?:\\pmod\s*\{?|\(?\s*\\mod\s*)\s*([0-9a-z]+)\s*\}?\)?$")
_PART_OF_COMPOUND = re.compile(
    r"([0-9]+(?:\.[0-9]+)?)\s?(\\text\{[A-Za-z]+\}|[a-z]{1,3})\s?(?:,\s?)?(?:\\text\{and\}\s?)?"
)
_UNIT_NAMES = r"((?:\\text\{[A-Za-z]+\}|[A-Za-z]|\^\{-?[0-9]\}|\\cdot|\s)+)"
_UNIT_FRACTION = re.compile(rf"(?<=[0-9}}) ])\\frac\{{{_UNIT_NAMES}\}}\{{{_UNIT_NAMES}\}}$")
_UNIT_START = re.compile(r"\\text\{|\\Omega(?![A-Za-z])|\^\{\\circ\}|%|[A-Za-z]+")
_NO_MEASURE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|log|ln|exp)(?![a-z])|[-+*/^_(\[]$")


def congruence(text: str) -> Answer | None:
    """Return `x \\equiv 3 \\pmod 7` as its name, residue and modulus."""
    found = _CONGRUENT.match(text) if "\\equiv" in text else None
    if found is None:
        return None
    return Answer("congruence", found[2].strip(), mark=found[3], name=tight(found[1]))


def word(text: str) -> Answer | None:
    """Return a word, a sentence or a letter of a choice."""
    choice = _CHOICE.fullmatch(text)
    if choice and (choice[1] or choice[2]):
        return Answer("word", (choice[1] or choice[2]).casefold(), mark="choice")
    if not re.search(r"\\text\{", text) or not _PHRASE.fullmatch(text):
        return None
    if re.match(r"[0-9(]|\\text\{[0-9]", text) and not re.match(r"[0-9]+\s?\\text\{(?:st|nd|rd|th)\}", text):
        return None
    if _MONEY.match(text) or _CURRENCY_NAME.match(text):
        return None
    words = words_of(text)
    return Answer("solutions", "\\mathbb{R}") if words in _ALL_REALS else Answer("word", words)


def is_sentence(text: str) -> bool:
    """Whether `and` joins words of a sentence, not answers: all are words, and one is more than a word."""
    if not _PHRASE.fullmatch(text) or re.search(r"[,;0-9]|\\text\{or\}|(?<![A-Za-z{])[A-Z](?![A-Za-z])", text):
        return False
    pieces = re.split(r"\\text\{and\}", text)
    return not all(re.fullmatch(r"\\text\{[^{}]*\}", piece.strip()) for piece in pieces)


def telling(text: str) -> bool:
    """Whether a word of a text changes what a number says."""
    return not same_words((), tuple(words_of(text).split()))


def words_of(text: str) -> str:
    """Words in small letters without marks, each in the singular."""
    text = re.sub(r"(?<![\w{])a(?=\s)", "", text)  # an article; `Player A` keeps its letter
    found = re.findall(r"[^\W_]+|[-+](?=[0-9])", text.replace("\\text", " ").casefold())
    return " ".join(stem(word) for word in found if word not in ("an", "the"))


def compound(text: str) -> Answer | None:
    """Return `2 hours 30 minutes` as one value in its first unit; the units get smaller."""
    pieces = list(_PART_OF_COMPOUND.finditer(text))
    if len(pieces) < 2 or "".join(piece[0] for piece in pieces) != text:
        return None
    tails = [tail(piece[2]) for piece in pieces]
    units = [one.unit for one in tails if one is not None and not one.words]
    sizes = [unit.size for unit in units]
    same_kind = len(units) == len(pieces) and units[0].bases and len({unit.bases for unit in units}) == 1
    if not same_kind or sizes != sorted(set(sizes), reverse=True):
        return None
    shares = [size / sizes[0] for size in sizes]
    terms = [
        f"{piece[1]}\\cdot\\frac{{{share.numerator}}}{{{share.denominator}}}"
        for piece, share in zip(pieces, shares, strict=True)
    ]
    return Answer("value", "+".join(terms), tail=Tail(units[0]))


def ratio(text: str) -> Answer | None:
    """Return a ratio, or a time of a day."""
    text = text.replace("\\text{to}", ":")
    found = _TIME.fullmatch(text)
    body, after = found.groups() if found else (text, None)
    pieces = [piece for _, piece in split(body, re.compile(":"))]
    if not 2 <= len(pieces) <= 6 or not all(pieces):
        return None
    said = tail(after) if after else Tail()
    return Answer("ratio", body, parts=tuple(Answer("value", piece) for piece in pieces), tail=said or Tail())


def based(text: str) -> Answer | None:
    """Return digits with their base."""
    found = _BASED.fullmatch(text)
    if found is None:
        return None
    base = int(found[2]) if found[2].isdigit() else _BASES.get(found[2], 0)
    digits = found[1].upper()
    try:
        int(digits, base if 2 <= base <= 36 else 1)
    except ValueError:
        return None if not digits[0].isdigit() else Answer("based", digits, mark=str(base or found[2]))
    return Answer("based", digits, mark=str(base))


def value(text: str) -> Answer:
    """Return a value with what stands around it; an answer of words and numbers is a word."""
    money = ""
    for pattern in (_MONEY, _CURRENCY_NAME):
        if found := pattern.match(text):
            text, money = found[1] + text[found.end() :], found[2].casefold()
            break
    if (measured := _measured(_UNIT_FRACTION.sub(r" \1/\2", text), money)) is not None:
        return measured
    if re.search(r"(?<!_\{)\\text\{[^{}]{2,}\}", text) and re.search(r"[0-9]", text):
        return Answer("word", words_of(text), mark="phrase")
    return Answer("value", text, tail=tail("", money) or Tail())


def _measured(text: str, money: str) -> Answer | None:
    """Return the value before the first place from where all is a unit or words."""
    free = outside(text)
    for found in _UNIT_START.finditer(text):
        start = found.start()
        body = text[:start].strip().removesuffix("\\cdot").rstrip("* {")
        if not free[start] or text[start - 1 : start] == "\\" or not _may_have_unit(body):
            continue
        after = tail(text[start:], money)
        if after is not None and not re.search(r"\\text\{(?:and|or)\}", text[start:]):
            lone = "letters" if after.lone_letters and text[start - 1].isdigit() else ""
            return Answer("value", bare(body), tail=after, left=text if after.lone_letters else "", mark=lone)
    return None


def _may_have_unit(body: str) -> bool:
    if not re.search(r"[0-9]|\\(?:pi|frac|sqrt)", body) or _NO_MEASURE.search(body):
        return False
    return body.count("{") == body.count("}") and body.count("(") == body.count(")")
