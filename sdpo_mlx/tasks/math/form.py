"""What is wrong with the form of an answer that is not right, without giving the right one away. Runs in the worker."""

from __future__ import annotations

import re

from sdpo_mlx.tasks.math import values
from sdpo_mlx.tasks.math.answer import Answer, letters
from sdpo_mlx.tasks.math.compare import compare_parts
from sdpo_mlx.tasks.math.normalize import UnreadableError, normalize
from sdpo_mlx.tasks.math.read import read

_DECIMAL = re.compile(r"[0-9]\.[0-9]|(?<![0-9])\.[0-9]")
_UNEQUAL = "It is not equal to the right answer."
_UNREADABLE = "It could not be read as a mathematical expression: write only the value, without words around it."
_SEVERAL = ("list", "set", "group")


def wrong_form(right: str, given: str) -> str:
    """Return what is wrong with the form, blank if nothing is."""
    try:
        wanted = read(normalize(right))
    except UnreadableError:
        return _UNEQUAL
    try:
        got = read(normalize(given))
    except UnreadableError:
        return _UNREADABLE
    if got.kind == "value" and values.too_large(got.text):
        return "It is too large to be worked out: write it in its simplest form."
    if not _readable(got):
        return _UNREADABLE
    return _form_of(wanted, got, given) if _readable(wanted) else _UNEQUAL


def _readable(answer: Answer) -> bool:
    if answer.kind == "word":
        return answer.mark not in ("phrase", "relation")
    if answer.kind == "value":
        return values.readable(answer.text)
    return all(map(_readable, answer.parts))


def _form_of(wanted: Answer, got: Answer, given: str) -> str:
    if wanted.kind == "word":
        return "" if got.kind == "word" else "A word or a letter is asked, but it is an expression."
    if got.kind == "word":
        return "It is a word, but a value is asked."
    if wanted.kind == "value" and got.kind == "value":
        return _form_of_values(wanted, got, given)
    if got.kind in _SEVERAL:
        return _form_of_parts(wanted, got)
    if wanted.kind in _SEVERAL and got.kind == "value":
        return "It is one value, but several are asked."
    return "" if wanted.kind == got.kind else _UNEQUAL


def _form_of_values(wanted: Answer, got: Answer, given: str) -> str:
    if wanted.tail.unit.bases and got.tail.unit.bases and wanted.tail.unit != got.tail.unit:
        return "Its unit is not the one that is asked."
    unknown, asked = letters(got.text), letters(wanted.text)
    if unknown and not asked:
        return f"It still holds {', '.join(unknown)}, but a number is asked."
    if asked and not unknown:
        return "It is a number, but an expression with letters is asked."
    if _DECIMAL.search(given) and not values.terminating(wanted.text):
        return "It is a decimal, but the exact value is asked, such as a fraction, a root or a multiple of pi."
    return ""


def _form_of_parts(wanted: Answer, got: Answer) -> str:
    if wanted.kind == "value":
        return f"It holds {len(got.parts)} values, but one value is asked."
    if wanted.kind not in _SEVERAL:
        return _UNEQUAL
    if len(wanted.parts) != len(got.parts):
        return f"It holds {len(got.parts)} values, but another number of values is asked."
    if "list" not in (wanted.kind, got.kind) and (wanted.kind, wanted.mark) != (got.kind, got.mark):
        return "Its brackets are not the ones that are asked."
    return _right_parts(compare_parts(wanted, got))


def _right_parts(verdicts: list[bool]) -> str:
    good = [str(number) for number, right in enumerate(verdicts, 1) if right]
    bad = [str(number) for number, right in enumerate(verdicts, 1) if not right]
    if not bad:
        return ""
    if not good:
        return "It holds as many values as are asked, but none of them is right."
    return f"Of its values, number {', '.join(good)} is right and number {', '.join(bad)} is not."
