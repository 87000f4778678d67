"""Generate the problems of the task `math`, always the same ones.

    python examples/math_problems/generate.py > sdpo_mlx/assets/math/problems.jsonl

Every template yields five problems, all in one split. Two whole families (modular
arithmetic, systems of equations) and one template of every other family are held out.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import algebra_templates
import numbers_templates
from template import Template, written

from sdpo_mlx.core.seeding import rng

PROBLEMS = 5  # per template
TEMPLATES = (*numbers_templates.TEMPLATES, *algebra_templates.TEMPLATES)
Numbers = Mapping[str, int]


def rows() -> Iterator[dict[str, Any]]:
    """Yield all problems, template by template."""
    for template in TEMPLATES:
        yield from _problems(template)


def _problems(template: Template) -> Iterator[dict[str, Any]]:
    chosen: list[Numbers] = []
    answers: list[str] = []
    attempt = 0
    while len(chosen) < PROBLEMS:
        numbers = _numbers(template, attempt)
        attempt += 1
        good = template.keep is None or template.keep(*numbers.values())
        answer = written(template.answer(*numbers.values())) if good else ""
        repeats = attempt > 200  # some templates have few different answers
        if answer and numbers not in chosen and (repeats or answer not in answers):
            chosen.append(numbers)
            answers.append(answer)
    for index, (numbers, answer) in enumerate(zip(chosen, answers, strict=True)):
        yield {
            "id": f"math/{template.name}/{index}",
            "question": _worded(template.wordings[index % len(template.wordings)], numbers),
            "answer": answer,
            "family": template.family,
            "template": template.name,
            "numbers": numbers,
            "level": template.level,
            "split": "held_out" if template.held_out else "train",
        }


def _numbers(template: Template, attempt: int) -> Numbers:
    draw = rng("math problem", template.name, attempt)
    return {name: int(draw.integers(low, high + 1)) for name, (low, high) in template.ranges.items()}


def _worded(wording: str, numbers: Numbers) -> str:
    """Fill the slots: `<a>` is the number a, `<a20>` is 20 a, the names of `_DERIVED` are computed."""

    def value(slot: re.Match[str]) -> str:
        name, factor = slot[1], slot[2]
        return str(numbers[name] * int(factor or 1)) if name in numbers else str(_DERIVED[name](**numbers))

    return re.sub(r"<([a-z]+)(\d*)>", value, wording)


_DERIVED: Mapping[str, Any] = {
    "price": lambda p, a: a * (10 - p),
    "product": lambda p, q, r: 2**p * 3**q * 5**r,
    "right": lambda a, b, x: a * x + b,
    "together": lambda k, x: (k + 1) * x,
    "sum": lambda x, y: x + y,
    "difference": lambda x, y: x - y,
    "first": lambda a, b, c, d, x, y: a * x + b * y,
    "second": lambda a, b, c, d, x, y: c * x + d * y,
    "heads": lambda x, y: x + y,
    "legs": lambda x, y: 2 * x + 4 * y,
    "worth": lambda x, y: 5 * x + 20 * y,
    "total": lambda **numbers: numbers["n"] * numbers["p"] if "p" in numbers else numbers["r"] + numbers["s"],
    "minus": lambda r, s: -r * s,
    "area": lambda x, d: x * (x + d),
    "twice": lambda p, q: 2 * p,
    "constant": lambda p, q: p * p + q,
    "apart": lambda v, w, t: (v + w) * t,
}


def main() -> None:
    """Write the problems, one JSON object a line."""
    for row in rows():
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
