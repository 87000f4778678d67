"""What the environment says about a wrong final answer, part by part, without giving the right one away."""

from __future__ import annotations

import re

from sdpo_mlx.core.text import display
from sdpo_mlx.tasks.math.compare import ParsedAnswer, compare_parts, readings
from sdpo_mlx.tasks.math.extract import Found
from sdpo_mlx.tasks.math.formats import FORMAT_LINE

FEEDBACK_MODES = ("verdict", "answer", "none")
_QUOTED = 80
_DECIMAL = re.compile(r"[0-9]\.[0-9]|(?<![0-9])\.[0-9]")
_CUT_OFF = "The answer was cut off at the length limit."
_CONSTANTS = ("pi", "e", "oo", "i")


def no_answer_text(truncated: bool) -> str:
    """For an answer without a final answer: how to give one."""
    if truncated:
        return f"{_CUT_OFF} It had no final answer by then: be shorter. {FORMAT_LINE}"
    return f"No final answer was found. {FORMAT_LINE}"


def wrong_text(right: str, found: Found, truncated: bool) -> str:
    """Where the answer was read, what its form is, and what is wrong; never the right value, its sign or its size."""
    place = "the last box" if found.where == "box" else "the last answer line"
    said = [f"The final answer `{_quoted(found.text)}`, read from {place}, is not correct."]
    if found.others:
        said.append(f"There were {found.others + 1} different final answers; only the last one counts.")
    said.append(_form(right, found.text) or "Its form is right, its value is not equal to the right answer.")
    if truncated:
        said.append(_CUT_OFF)
    return " ".join(said)


def right_answer_text(right: str) -> str:
    """For the mode `answer`."""
    return f"The right answer is `{_quoted(right)}`."


def _quoted(text: str) -> str:
    shown = " ".join(display(text, _QUOTED * 4).split())
    return shown if len(shown) <= _QUOTED else shown[: _QUOTED - 3] + "..."


def _form(right: str, given: str) -> str:
    """Return what is wrong with the form, blank if nothing is or when the right answer cannot be read here."""
    wanted, got = readings(right), readings(given)
    if not wanted:
        return "It is not equal to the right answer."
    if not got:
        return "It could not be read as a mathematical expression: write only the value, without words around it."
    return _form_of(wanted[0], got[0], given)


def _form_of(wanted: ParsedAnswer, got: ParsedAnswer, given: str) -> str:
    if got.kind == "equation" and wanted.kind != "equation":
        return _form_of(wanted, got.parts[-1], given)
    if wanted.kind == "word":
        return "" if got.kind == "word" else "A word or a letter is asked, but it is an expression."
    if got.kind == "word":
        return "It is a word, but a value is asked."
    if wanted.kind == "value":
        return _form_of_value(wanted, got, given)
    if wanted.kind in ("list", "set", "group"):
        return _form_of_parts(wanted, got)
    return ""


def _form_of_value(wanted: ParsedAnswer, got: ParsedAnswer, given: str) -> str:
    if got.kind != "value" or got.value is None or wanted.value is None:
        return f"It holds {len(got.parts)} values, but one value is asked."
    if wanted.unit and got.unit and wanted.unit != got.unit:
        return "Its unit is not the one that is asked."
    letters = sorted(name for name in got.value.names() if name.isalpha() and name not in _CONSTANTS)
    numeric = not any(name.isalpha() and name not in _CONSTANTS for name in wanted.value.names())
    if letters and numeric:
        return f"It still holds {', '.join(letters)}, but a number is asked."
    if not letters and not numeric:
        return "It is a number, but an expression with letters is asked."
    if _DECIMAL.search(given) and not _ends(wanted):
        return "It is a decimal, but the exact value is asked, such as a fraction, a root or a multiple of pi."
    return ""


def _ends(wanted: ParsedAnswer) -> bool:
    """Return whether the right value is a decimal that ends, so that a decimal may be exact."""
    value = wanted.value.rational if wanted.value is not None else None
    if value is None:
        return False
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _form_of_parts(wanted: ParsedAnswer, got: ParsedAnswer) -> str:
    if got.kind == "value":
        return "It is one value, but several are asked."
    if len(wanted.parts) != len(got.parts):
        return f"It holds {len(got.parts)} values, but another number of values is asked."
    if "list" not in (wanted.kind, got.kind) and (wanted.kind, wanted.mark) != (got.kind, got.mark):
        return "Its brackets are not the ones that are asked."
    verdicts = compare_parts(wanted, got)
    good = [str(number) for number, verdict in enumerate(verdicts, 1) if verdict == "equal"]
    bad = [str(number) for number, verdict in enumerate(verdicts, 1) if verdict != "equal"]
    if not bad:
        return ""
    if not good:
        return "It holds as many values as are asked, but none of them is right."
    return f"Of its values, number {', '.join(good)} is right and number {', '.join(bad)} is not."
