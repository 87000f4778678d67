"""Reference answers in rows, for the self-teacher alone (`teacher.demonstration: dataset`).

Every layout may have a field `reference`, an answer as the model should write it; public ones have other
names: HumanEval's `canonical_solution`, MBPP's `code`, the first of APPS' and TACO's `solutions`, the worked
`solution` of MATH, the text of GSM8K's `answer`, `r1_solution_1` of DeepMath, `why`, SciQ's `support` and GPQA's
`Explanation`. Where there is only a final value, that is the reference. Never needed to grade.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.markdown import code_blocks

_WORKED = ("solution", "Solution", "r1_solution_1")
_BACKTICKS = re.compile(r"`{3,}")
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # GSM8K's notes to itself


def given(row: Mapping[str, Any], *names: str) -> str | None:
    """Return the first of these fields that holds a text which isn't blank; other values are ignored."""
    texts = (row.get(name) for name in names)
    return next((text for text in texts if isinstance(text, str) and text.strip()), None)


def checked(row: Mapping[str, Any], where: str) -> str | None:
    """Return the field `reference` of a native row. Raises DataError that names `where` when it is not text."""
    if not isinstance(row.get("reference", ""), str):
        raise DataError("reference is not text", where=where, fix="write a right answer as text, or leave it out")
    return given(row, "reference")


def code_reference(row: Mapping[str, Any]) -> str | None:
    """Return a program as an answer writes it: inside a fence."""
    text = given(row, "reference")
    if text is None and (rest := given(row, "canonical_solution")) is not None:
        text = f"{row.get('prompt', '')}{rest}"
    text = text or given(row, "code")
    if text is None:
        solutions = row.get("solutions")  # a list of programs, or the JSON text of one
        try:
            solutions = json.loads(solutions) if isinstance(solutions, str) else solutions
        except (ValueError, RecursionError):
            solutions = None
        text = next((each for each in solutions or () if isinstance(each, str) and each.strip()), None)
    if text is None or code_blocks(text):
        return text
    fence = "`" * max(3, 1 + max(map(len, _BACKTICKS.findall(text)), default=0))
    return f"{fence}python\n{text.strip()}\n{fence}"


def math_reference(row: Mapping[str, Any], answer: str, mark: str) -> str:
    """Return a worked solution that ends with the boxed answer; the boxed answer alone if there is no solution.

    `mark` separates GSM8K's solution from its value.
    """
    text = given(row, "reference", *_WORKED) or ""
    if not text and isinstance(row.get("answer"), str):
        text = _CALCULATOR.sub("", row["answer"].rpartition(mark)[0])
    boxed = f"\\boxed{{{answer}}}"
    return text if "\\boxed" in text else "\n\n".join(part for part in (text.strip(), boxed) if part)


def choice_reference(why: str, letter: str) -> str:
    """Return the reason, if there is one, and the right letter between answer tags."""
    return "\n\n".join(part for part in (why.strip(), f"<answer>{letter}</answer>") if part)
