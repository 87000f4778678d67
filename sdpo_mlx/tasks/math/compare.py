"""Whether two answers are the same: normalise, ask math-verify about each value, refuse what it forgives too much.

Runs in the worker process (`worker.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from sdpo_mlx.tasks.math import values
from sdpo_mlx.tasks.math.answer import Answer, letters, tight
from sdpo_mlx.tasks.math.normalize import UnreadableError, normalize
from sdpo_mlx.tasks.math.read import ambiguous, bound_variable, read
from sdpo_mlx.tasks.math.units import conversion, same_words

_SUM = re.compile(r"[A-Za-z]{1,3}(?:\s?[-+]\s?[A-Za-z]{1,3})+|[a-z]{2}")
_FUNCTION = re.compile(r"y|[a-zA-Z](?:_\{?\w+\}?)?\([a-z]\)")


def equal(right: str, given: str) -> bool:
    """`right` is the answer of the problem; `given` is untrusted."""
    one, two = _spelt(right), _spelt(given)
    if not one or not two:
        return False
    two = _same_bound_variable(one, two)
    if _without_words(one) == _without_words(two):
        return True
    try:
        wanted, got = read(one), read(two)
    except UnreadableError:
        return False
    if same(wanted, got):
        return True
    # `100,200` is a list where the other answer is one.
    if got.kind == "list" and got.mark == "," and ambiguous(one):
        return same(read(one, joined=False), got)
    return wanted.kind in ("list", "group", "set") and ambiguous(two) and same(wanted, read(two, joined=False))


def _spelt(text: str) -> str:
    try:
        return normalize(text)
    except UnreadableError:
        return ""


def _same_bound_variable(right: str, given: str) -> str:
    """Return the given answer with the right one's letter for what runs over the integers: `n\\pi` for `k\\pi`."""
    old, new = bound_variable(given), bound_variable(right)
    if not old or not new or old == new or re.search(_alone(new), given):
        return given
    return re.sub(_alone(old), new, given)


def _alone(letter: str) -> str:
    return rf"(?<![\\A-Za-z]){letter}(?![A-Za-z])"


def _without_words(text: str) -> str:
    return re.sub(r"(?<![0-9])\s+|\s+(?![0-9])|\\text\{([^{}]*)\}", lambda found: found[1] or "", text)


def same(right: Answer, given: Answer) -> bool:
    """Follows the form of the right answer: where it states no name, a given `x =` is left out."""
    if given.rough and not right.rough and not re.search(r"[0-9]\.[0-9]", right.text):
        return False
    kinds = {right.kind, given.kind}
    if "equation" in kinds:
        return _same_equation(right, given)
    if right.name and given.name and not _same_name(right.name, given.name) and right.kind != "group":
        return kinds == {"value"} and bool(letters(right.text)) and _same_equation(right, given)
    if "solutions" in kinds:
        return _same_solutions(right, given)
    if kinds & _SEVERAL:
        return _same_parts(right, given)
    judge = _SINGLE.get(frozenset(kinds))
    return judge is not None and judge(right, given)


def _same_name(one: str, two: str) -> bool:
    """`y` and `f(x)` both name the value of a function."""
    one, two = (re.sub(r"^\\frac\{d([a-z])\}\{dx\}$", r"\1'", name) for name in (one, two))
    if one == two or (one.isalpha() and len(one) == 2 and one == two[::-1]):  # AB is BA, xy is yx
        return True
    return "y" in (one, two) and bool(_FUNCTION.fullmatch(one) and _FUNCTION.fullmatch(two))


def _same_equation(right: Answer, given: Answer) -> bool:
    if right.kind == "value" and not right.name:
        # `x + y = 7`, or one expression in two forms
        named = _SUM.fullmatch(given.left) or values.equal(right.text, given.left)
        return bool(named) and values.equal(right.text, given.text)
    sides = []
    for answer in (right, given):
        if answer.kind == "equation":
            sides.append((answer.left, answer.text))
        elif answer.kind == "value" and answer.name:
            sides.append((answer.name, answer.text))
        else:
            return False
    return values.same_equation(sides[0], sides[1])


def _same_solutions(right: Answer, given: Answer) -> bool:
    texts = []
    for answer in (right, given):
        if answer.kind == "solutions":
            texts.append(answer.text)
        elif answer.kind == "group" and len(answer.parts) == 2 and answer.mark in ("()", "(]", "[)", "[]"):
            texts.append(f"{answer.mark[0]}{answer.parts[0].text},{answer.parts[1].text}{answer.mark[1]}")
        elif answer.kind in ("set", "list") and all(part.kind == "value" for part in answer.parts):
            texts.append(f"\\{{{','.join(part.text for part in answer.parts)}\\}}" if answer.parts else "\\emptyset")
        else:
            return False
    return values.same_solutions(texts[0], texts[1]) or _same_operands(texts[0], texts[1])


def _same_operands(right: str, given: str) -> bool:
    """Unions, or intersections, of the same sets in another order."""
    for sign in ("\\cup", "\\cap"):
        one, two = (sorted(map(tight, text.split(sign))) for text in (right, given))
        if len(one) > 1 and one == two and not re.search(r"\\c[au]p", "".join(one)):
            return True
    return False


def _same_ratio(right: Answer, given: Answer) -> bool:
    """Times of a day by their numbers, other ratios by proportion."""
    one, two = right.parts, given.parts
    if len(one) != len(two) or not same_words(right.tail.words, given.tail.words):
        return False
    if _is_time(right) and _is_time(given):
        return all(int(a.text) == int(b.text) for a, b in zip(one, two, strict=True))
    return all(
        values.equal(f"({a.text})\\cdot({two[0].text})", f"({b.text})\\cdot({one[0].text})")
        for a, b in zip(one[1:], two[1:], strict=True)
    )


def _is_time(answer: Answer) -> bool:
    return re.fullmatch(r"[0-9]{1,2}(?::[0-5][0-9]){1,2}", answer.text.replace(" ", "")) is not None


def _same_digits(right: Answer, given: Answer) -> bool:
    """Digits of one base; where only the answer states its base, its value counts."""
    if right.kind == given.kind:
        return right.mark == given.mark and right.text.lstrip("0") == given.text.lstrip("0")
    based, plain = (right, given) if right.kind == "based" else (given, right)
    digits = plain.text.replace(" ", "").upper()
    if based is right or based.mark == "10":
        return digits.lstrip("0") == based.text.lstrip("0")
    try:
        return int(digits) == int(based.text, int(based.mark))
    except ValueError:
        return False  # digits that the base does not have, a base without a number


def _same_residue(right: Answer, given: Answer) -> bool:
    if right.name != given.name or right.mark != given.mark:
        return False
    if not all(text.lstrip("-").isdigit() for text in (right.text, given.text, right.mark)):
        return values.equal(right.text, given.text)
    return int(right.mark) != 0 and (int(right.text) - int(given.text)) % int(right.mark) == 0


def _as_value(answer: Answer) -> Answer:
    if answer.kind == "ratio" and len(answer.parts) == 2 and not answer.tail.words:
        return Answer("value", f"\\frac{{{answer.parts[0].text}}}{{{answer.parts[1].text}}}", name=answer.name)
    return answer


def _same_word(right: Answer, given: Answer) -> bool:
    return right.text == given.text


def _same_value(right: Answer, given: Answer) -> bool:
    right, given = _as_value(right), _as_value(given)
    if right.kind != "value" or given.kind != "value":
        return False
    if right.mark == "letters" or (given.tail.lone_letters and letters(right.text)):
        right, given = _with_letters(right), _with_letters(given)
    size = conversion(right.tail.unit, given.tail.unit)
    if size is None or not same_words(right.tail.words, given.tail.words):
        return False
    if not all(_same_value(part, replace(given, parts=())) for part in given.parts):
        return False
    one, two = _scaled(right), _scaled(given)
    if size != 1:
        two = f"({two})\\cdot\\frac{{{size.numerator}}}{{{size.denominator}}}"
    if right.tail.percent == given.tail.percent:
        return values.equal(one, two)
    # A percent sign is a unit that may be left out, or added, on either side.
    if values.equal(one, two):
        return True
    return (
        values.equal(f"\\frac{{{one}}}{{100}}", two)
        if right.tail.percent
        else values.equal(one, f"\\frac{{{two}}}{{100}}")
    )


def _with_letters(answer: Answer) -> Answer:
    return replace(answer, text=answer.left, tail=type(answer.tail)()) if answer.left else answer


def _scaled(answer: Answer) -> str:
    text = answer.text
    if answer.tail.power != 1:
        text = f"({text})^{{{answer.tail.power}}}"
    return text if answer.tail.factor == 1 else f"({text})\\cdot {answer.tail.factor}"


def _same_parts(right: Answer, given: Answer) -> bool:
    """Groups in order with their brackets; sets in any order; a bare list is either, but no interval or matrix."""
    kinds = (right.kind, given.kind)
    if not _SEVERAL.issuperset(kinds):
        return _same_alone(right, given)
    if set(kinds) == {"group", "set"} or (kinds == ("group", "group") and right.mark != given.mark):
        return False
    if set(kinds) == {"group", "list"} and "()" not in (right.mark, given.mark):
        return False
    if {right.mark, given.mark} == {"∨", "∧"} and not any(part.name for part in right.parts):
        return False
    one, two = right.parts, given.parts
    if not one or not two:
        return not one and not two
    return _in_order(*_ordered(one, two)) if "group" in kinds or _order_counts(one, two) else _same_members(one, two)


def _order_counts(one: Sequence[Answer], two: Sequence[Answer]) -> bool:
    """Whether parts of two lists have names, or words for what they count, on one side or both, or go on."""
    named = any(_by_name(parts) and not _numbered(parts) for parts in (one, two))
    return named or any("\\ldots" in part.text for part in one) or _counted(one, two)


def _ordered(one: Sequence[Answer], two: Sequence[Answer]) -> tuple[Sequence[Answer], Sequence[Answer]]:
    return _by_name(one) or one, _by_name(two) or two


def _same_members(one: Sequence[Answer], two: Sequence[Answer]) -> bool:
    return all(any(same(a, b) for b in two) for a in one) and all(any(same(a, b) for a in one) for b in two)


def _same_alone(right: Answer, given: Answer) -> bool:
    """One value against several: a set of one, one value written in several ways, `C(10,3)` as a number of choices."""
    several, alone = (right, given) if right.kind in _SEVERAL else (given, right)
    if several.kind == "group":
        return several.name == "C" and alone.kind == "value" and values.equal(several.left, alone.text)
    if several.mark != "or" and several.kind != "set":
        return False
    return bool(several.parts) and all(
        same(part, given) if several is right else same(right, part) for part in several.parts
    )


def _in_order(one: Sequence[Answer], two: Sequence[Answer]) -> bool:
    return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))


def _by_name(parts: Sequence[Answer]) -> list[Answer]:
    """Parts in the order of their names, none if not every part has a name of its own."""
    names = [part.name for part in parts if part.kind not in ("group", "list")]
    if len(names) != len(parts) or not all(names) or len(set(names)) != len(names):
        return []
    return sorted(parts, key=lambda part: part.name)


def _numbered(parts: Sequence[Answer]) -> bool:
    """Whether the names are one letter with indices, as those of the solutions of one equation."""
    return len({part.name.partition("_")[0] for part in parts}) == 1 and all("_" in part.name for part in parts)


def _counted(one: Sequence[Answer], two: Sequence[Answer]) -> bool:
    """Whether only one side says what it counts, so that the order has to tell."""
    words = [[part.tail.words for part in parts] for parts in (one, two)]
    return len(set(words[0])) > 1 and all(words[0]) and not any(words[1])


_SEVERAL = frozenset(("list", "set", "group"))
_SINGLE: dict[frozenset[str], Callable[[Answer, Answer], bool]] = {
    frozenset(("ratio",)): _same_ratio,
    frozenset(("based",)): _same_digits,
    frozenset(("based", "value")): _same_digits,
    frozenset(("congruence",)): _same_residue,
    frozenset(("word",)): _same_word,
    frozenset(("value",)): _same_value,
    frozenset(("value", "ratio")): _same_value,
}


def compare_parts(right: Answer, given: Answer) -> list[bool]:
    """One grade for each part of the given answer: in order for groups, otherwise against any part of the right one."""
    if "group" in (right.kind, given.kind):
        return [same(one, two) for one, two in zip(right.parts, given.parts, strict=False)]
    return [any(same(one, two) for one in right.parts) for two in given.parts]
