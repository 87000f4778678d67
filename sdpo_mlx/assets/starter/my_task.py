"""Dates in words to ISO 8601: a small task to change into yours.

`grade` gets a row of problems.jsonl and the model's answer, and gives (reward, feedback). The feedback is what the
self-teacher reads, so say something about every part of the answer, the right parts too.
"""

from __future__ import annotations

import re
from typing import Any

ISO = re.compile(r"(\d+)-(\d+)-(\d+)")


def grade(problem: dict[str, Any], answer: str, truncated: bool = False) -> tuple[float, str]:
    """Reward 1 for the right date and nothing else; for a readable wrong one a quarter for each right part."""
    if truncated:
        return 0.0, "The answer was cut off because it was too long. Write the date alone."
    found = ISO.findall(answer)
    if len(found) != 1:
        seen = "no date" if not found else f"{len(found)} dates"
        return 0.0, f"The answer holds {seen}. Write one date like 2024-01-31 and nothing else."
    wanted = {"year": (problem["year"], 4), "month": (problem["month"], 2), "day": (problem["day"], 2)}
    said, right = [], 0
    for (name, (value, width)), written in zip(wanted.items(), found[0], strict=True):
        if int(written[:9]) != value:
            said.append(f"The {name} {written[:9]} is wrong.")
        elif len(written) != width:
            said.append(f"The {name} {written} needs {width} digits.")
        else:
            said.append(f"The {name} {written} is right.")
            right += 1
    alone = answer.strip() == "-".join(found[0])
    if right == len(wanted) and alone:
        return 1.0, ""
    if not alone:
        said.append("There is other text beside the date; write the date alone.")
    return right / 4, "\n".join(said)


def solution(problem: dict[str, Any]) -> str:
    """A right answer, for `sdpo tasks check`; training never sees it."""
    return f"{problem['year']:04}-{problem['month']:02}-{problem['day']:02}"
