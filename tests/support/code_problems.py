"""The shipped Python problems with their right and wrong solutions."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from paths import DATA

from sdpo_mlx.tasks.base import Split

TOO_SLOW = {"code/fibonacci_number", "code/stairs_ways", "code/common_subsequence"}  # what is wrong with wrong2
SPLITS: tuple[Split, ...] = ("train", "held_out")
Row = dict[str, Any]


def read_rows() -> list[Row]:
    text = (resources.files("sdpo_mlx") / "assets/code/problems.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def read_solutions() -> dict[tuple[str, str], str]:
    lines = (DATA / "code_solutions.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    return {(row["slug"], row["kind"]): row["source"] for row in rows}


ROWS = read_rows()
SOLUTIONS = read_solutions()  # programs by problem and kind: right, wrong, wrong2
