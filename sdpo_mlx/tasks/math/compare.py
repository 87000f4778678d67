"""Whether two answers are the same: exactly where they can be read, else by math-verify, else by their letters.

`compare` says `equal` or `different` only where that is certain: rational numbers, roots, pi, polynomials and
quotients of them, and tuples, sets, intervals, matrices and equations of these. A decimal is exactly what it says,
so 0.33 is not 1/3. Everything else is `unknown` here and is asked of math-verify where it is installed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Literal

from sdpo_mlx.tasks.math.algebra import Quotient, TooBigError, add, letter, multiply, number
from sdpo_mlx.tasks.math.parse import LONGEST, expression, plain
from sdpo_mlx.tasks.math.units import without_unit

Verdict = Literal["equal", "different", "unknown"]
Kind = Literal["value", "list", "set", "group", "equation", "word"]

_MOST_PARTS = 30
_MOST_DEPTH = 4
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?![0-9,])")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|operatorname|mbox)\s*\{([^{}]*)\}")
_MATRIX = re.compile(r"^\\begin\{([pbv]?matrix)\}(.*)\\end\{\1\}$", re.DOTALL)
_WORDS = re.compile(r"[^\W_]+")
_BLANK = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")  # all but those that part two numbers
_AND = re.compile(r"\s*(?:\\text\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|;)\s*")
_NAME = re.compile(r"^(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?|[A-Za-z]\s*\(\s*[A-Za-z]\s*\))$")
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer as it was understood: one value, or parts, or a word; `unit` when one was stated."""

    kind: Kind
    value: Quotient | None = None
    parts: tuple[ParsedAnswer, ...] = ()
    mark: str = ""  # the brackets of a group, the word of a word
    unit: str = ""
    percent: bool = False


def compare(right: str, given: str) -> Verdict:
    """`right` is the answer of the problem; `given` is untrusted."""
    if _same_text(right, given):
        return "equal"
    verdicts = [_same(one, two) for one, two in product(readings(right), readings(given))]
    if "equal" in verdicts:
        return "equal"
    return "different" if verdicts and "unknown" not in verdicts else "unknown"


def readings(text: str) -> list[ParsedAnswer]:
    """Return how an answer may be understood: `1,234` is a number, or two. Empty when it cannot be read."""
    if len(text) > LONGEST * 2:
        return []
    text = plain(text)
    together = _THOUSANDS.sub(lambda found: re.sub("[ ,]", "", found[0]), text)
    found = []
    for spelling in dict.fromkeys((together, text)):
        try:
            found.append(_read(spelling, 0))
        except (ValueError, RecursionError):
            continue
    return found


def beyond(text: str) -> bool:
    """Return whether an answer is one expression that is too large to be worth computing, such as `9^{9^9}`."""
    try:
        expression(plain(text[: LONGEST * 2]))
    except TooBigError:
        return True
    except (ValueError, RecursionError):
        return False
    return False


def _same_text(right: str, given: str) -> bool:
    def bare(text: str) -> str:
        return _BLANK.sub("", _TEXT.sub(r"\1", plain(text[: LONGEST * 4])))

    one, two = bare(right), bare(given)
    return bool(one) and len(right) <= LONGEST * 4 >= len(given) and one == two


def _read(text: str, depth: int) -> ParsedAnswer:
    text = text.strip()
    if depth > _MOST_DEPTH or not text:
        raise ValueError("cannot be read")
    word = _word(text)
    if word:
        return ParsedAnswer("word", mark=word)
    for reader in (_equation, _union, _matrix, _separated, _bracketed, _both_signs):
        answer = reader(text, depth)
        if answer is not None:
            return answer
    return _value(text)


def _word(text: str) -> str:
    """Return a lone word or letter of a choice, such as `\\text{Tuesday}`, `(B)`, `yes`."""
    inside = _TEXT.fullmatch(text)
    if inside:
        bare = inside[1].strip().strip("()").strip(".")
        return "" if any(sign.isdigit() for sign in bare) else " ".join(_WORDS.findall(bare.casefold()))
    bare = text.strip("()") if re.fullmatch(r"\([A-Za-z]\)", text) else text
    if re.fullmatch(r"[A-Z]", bare):
        return bare.casefold()
    plain_word = re.fullmatch(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*", text)
    return " ".join(text.casefold().split()) if plain_word and not _readable(text) else ""


def _readable(text: str) -> bool:
    try:
        expression(text)
    except ValueError:
        return False
    return True


def _value(text: str) -> ParsedAnswer:
    amount, unit, percent = without_unit(text)
    value = expression(_TEXT.sub(r" \1 ", amount))
    if "infty" in amount and not any(
        value.equals(end) for end in (letter("oo"), multiply(number(Fraction(-1)), letter("oo")))
    ):
        raise ValueError("infinity is an end, not a number")
    return ParsedAnswer(
        "value", multiply(value, number(Fraction(1, 100))) if percent else value, unit=unit, percent=percent
    )


def _equation(text: str, depth: int) -> ParsedAnswer | None:
    sides = _split(text, "=")
    if len(sides) < 2 or re.search(r"\\(?:ne|le|ge|approx)(?![a-z])|[<>]", text):
        return None
    if len(_split(text, ",")) > 1 or _AND.search(text):
        return None
    left, right = sides[0].strip(), sides[-1].strip()
    name = left.replace(" ", "") if _NAME.match(left) else ""
    parts = (_read(right, depth + 1),) if name else (_read(left, depth + 1), _read(right, depth + 1))
    return ParsedAnswer("equation", parts=parts, mark=name)


def _union(text: str, depth: int) -> ParsedAnswer | None:
    pieces = re.split(r"\\cup(?![a-z])", text)
    return _parts("set", pieces, depth) if len(pieces) > 1 else None


def _matrix(text: str, depth: int) -> ParsedAnswer | None:
    found = _MATRIX.match(text)
    if not found:
        return None
    rows = [row for row in found[2].split("\\\\") if row.strip()]
    shape = "x".join(str(row.count("&") + 1) for row in rows)
    cells = [cell for row in rows for cell in row.split("&")]
    return _parts("group", cells, depth, "matrix " + shape)


def _separated(text: str, depth: int) -> ParsedAnswer | None:
    pieces = [piece for part in _split(text, ",") for piece in _AND.split(part)]
    pieces = [piece for piece in pieces if piece.strip()]
    return _parts("list", pieces, depth) if len(pieces) > 1 else None


def _bracketed(text: str, depth: int) -> ParsedAnswer | None:
    """`(1, 2)`, `[0, 1)`, `\\{1, 2\\}`; brackets around one expression only group it."""
    if text.startswith("\\{") and text.endswith("\\}"):
        return _parts("set", [piece for piece in _split(text[2:-2], ",") if piece.strip()], depth)
    if text in ("\\emptyset", "\\varnothing"):
        return ParsedAnswer("set")
    if text[0] not in _OPENING or text[-1] not in _CLOSING or _closing(text) != len(text) - 1:
        return None
    pieces = _split(text[1:-1], ",")
    if len(pieces) < 2:
        return None
    return _parts("set" if text[0] == "{" else "group", pieces, depth, text[0] + text[-1])


def _both_signs(text: str, depth: int) -> ParsedAnswer | None:
    if "\\pm" not in text and "\\mp" not in text:
        return None
    upper = re.sub(r"\\pm(?![a-z])", "+", re.sub(r"\\mp(?![a-z])", "-", text))
    lower = re.sub(r"\\pm(?![a-z])", "-", re.sub(r"\\mp(?![a-z])", "+", text))
    return _parts("list", [upper, lower], depth)


def _parts(kind: Kind, pieces: Sequence[str], depth: int, mark: str = "") -> ParsedAnswer:
    if len(pieces) > _MOST_PARTS:
        raise TooBigError("the answer has too many parts")
    parts = [_read(piece, depth + 1) for piece in pieces]
    if kind != "group":  # `x = 2 or x = 3` and `\pm 2, 5` are lists of what they hold
        parts = [inner for part in parts for inner in (part.parts if part.kind == "list" else (part,))]
    return ParsedAnswer(kind, parts=tuple(parts), mark=mark)


def _split(text: str, sign: str) -> list[str]:
    """Return the pieces between signs that stand outside of all brackets."""
    pieces, level, start = [], 0, 0
    for position, one in enumerate(text):
        level += (one in _OPENING) - (one in _CLOSING)
        if one == sign and level == 0:
            pieces.append(text[start:position])
            start = position + 1
    return [*pieces, text[start:]]


def _closing(text: str) -> int:
    """Where the first bracket is closed; kinds may be mixed, as in `[0, 1)`."""
    level = 0
    for position, one in enumerate(text):
        level += (one in _OPENING) - (one in _CLOSING)
        if level == 0:
            return position
    return -1


def _same(right: ParsedAnswer, given: ParsedAnswer) -> Verdict:
    """Follows the form of the right answer: where it states no name, a given `x =` is left out."""
    if right.kind == "equation" and given.kind == "equation":
        return _same_equation(right, given)
    if given.kind == "equation" and given.mark:
        return _same(right, given.parts[0])
    if right.kind == "equation" and right.mark:
        return _same(right.parts[0], given)
    return _same_unnamed(right, given)


def _same_unnamed(right: ParsedAnswer, given: ParsedAnswer) -> Verdict:
    if "word" in (right.kind, given.kind):
        return _said(right.kind == given.kind and right.mark == given.mark)
    if right.kind == "value" and given.kind == "value":
        return _same_value(right, given)
    return "unknown" if "equation" in (right.kind, given.kind) else _same_parts(right, given)


def _same_value(right: ParsedAnswer, given: ParsedAnswer) -> Verdict:
    if right.value is None or given.value is None:
        return "unknown"
    if right.unit and given.unit and right.unit != given.unit:
        return "different"
    try:
        hundred = number(Fraction(100))
        if right.value.equals(given.value):
            return "equal"
        # A percent sign is a unit that may be left out, or added, on either side.
        if right.percent and not given.percent and multiply(right.value, hundred).equals(given.value):
            return "equal"
        return _said(given.percent and not right.percent and right.value.equals(multiply(given.value, hundred)))
    except TooBigError:
        return "unknown"


def _same_equation(right: ParsedAnswer, given: ParsedAnswer) -> Verdict:
    if right.mark and given.mark:
        return _same(right.parts[0], given.parts[0]) if right.mark == given.mark else "different"
    if right.mark or given.mark or any(part.value is None for part in (*right.parts, *given.parts)):
        return "unknown"
    minus = number(Fraction(-1))
    one, two = ([part.value for part in answer.parts if part.value] for answer in (right, given))
    try:
        left, other = (add(sides[0], multiply(minus, sides[1])) for sides in (one, two))
        return "equal" if left.equals(other) or left.equals(multiply(minus, other)) else "unknown"
    except TooBigError:
        return "unknown"


def _same_parts(right: ParsedAnswer, given: ParsedAnswer) -> Verdict:
    """Groups in order with their brackets; sets in any order; a bare list is either."""
    if right.kind == "group" and given.kind == "group" and right.mark != given.mark:
        return "different"
    if {right.kind, given.kind} == {"group", "set"}:
        return "different"
    one, two = right.parts or (right,), given.parts or (given,)
    if (right.kind == "set" and not right.parts) or (given.kind == "set" and not given.parts):
        return _said(right.kind == given.kind and not right.parts and not given.parts)
    if "group" in (right.kind, given.kind):
        if len(one) != len(two):
            return "different"
        return _all([_same(a, b) for a, b in zip(one, two, strict=True)])
    return _all([_any([_same(a, b) for b in two]) for a in one] + [_any([_same(a, b) for a in one]) for b in two])


def _all(verdicts: Sequence[Verdict]) -> Verdict:
    if "different" in verdicts:
        return "different"
    return "unknown" if "unknown" in verdicts else "equal"


def _any(verdicts: Sequence[Verdict]) -> Verdict:
    if "equal" in verdicts:
        return "equal"
    return "unknown" if "unknown" in verdicts else "different"


def _said(same: bool) -> Verdict:
    return "equal" if same else "different"


def compare_parts(right: ParsedAnswer, given: ParsedAnswer) -> list[Verdict]:
    """One grade for each part of the given answer: in order for groups, otherwise against any part of the right one."""
    if "group" in (right.kind, given.kind):
        return [_same(one, two) for one, two in zip(right.parts, given.parts, strict=False)]
    return [_any([_same(one, two) for one in right.parts]) for two in given.parts]
