"""The shipped Python problems with their right and wrong solutions."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from paths import DATA

from sdpo_mlx.tasks.base import Split

SOLUTIONS = DATA / "code_solutions"
TOO_SLOW = {"code/fibonacci_number", "code/stairs_ways", "code/common_subsequence"}  # what is wrong with wrong2
SPLITS: tuple[Split, ...] = ("train", "held_out")
Row = dict[str, Any]


def read_rows() -> list[Row]:
    text = (resources.files("sdpo_mlx") / "assets/code/problems.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


ROWS = read_rows()
