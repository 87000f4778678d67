"""The problems of the task math: made again, solved again by other means, and held out by template and family."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from math_brute import ALGEBRA, NUMBERS, SURDS
from paths import ROOT

from sdpo_mlx.tasks.math.normalize import normalize
from sdpo_mlx.tasks.math.read import read
from sdpo_mlx.tasks.math.task import MathTask
from sdpo_mlx.tasks.math.values import expression

SHIPPED = ROOT / "sdpo_mlx/assets/math/problems.jsonl"
ROWS: tuple[dict[str, Any], ...] = tuple(map(json.loads, SHIPPED.read_text(encoding="utf-8").splitlines()))


def test_generator_makes_the_shipped_problems_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples/math_problems"))
    made = importlib.import_module("generate")
    try:
        assert list(made.rows()) == list(ROWS)
    finally:
        for name in ("generate", "template", "numbers_templates", "algebra_templates"):
            sys.modules.pop(name, None)


def test_problems_are_many_and_of_many_kinds() -> None:
    assert len(ROWS) >= 200
    assert len({row["family"] for row in ROWS}) >= 10
    assert len({row["question"] for row in ROWS}) == len({row["id"] for row in ROWS}) == len(ROWS)
    assert min(Counter(row["level"] for row in ROWS).values()) >= 40
    # Wordings differ within a template, beyond their numbers.
    shapes = {"".join(sign for sign in row["question"] if not sign.isdigit()) for row in ROWS}
    assert len(shapes) >= 90


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_answer_is_found_again_by_other_means(row: dict[str, Any]) -> None:
    name, numbers = row["template"], row["numbers"]
    answer = read(normalize(row["answer"]))
    stated = [expression(part.text) for part in answer.parts or (answer,)]
    if name in SURDS:
        assert math.isclose(float(stated[0]), SURDS[name](**numbers), rel_tol=1e-12)
        return
    found = {**NUMBERS, **ALGEBRA}[name](**numbers)
    values = list(found) if isinstance(found, list | tuple) else [found]
    assert [Fraction(str(value)) for value in stated] == [Fraction(value) for value in values]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_question_states_numbers_and_no_placeholder(row: dict[str, Any]) -> None:
    assert "<" not in row["question"].replace("<= ", "").replace("< ", "")
    assert any(sign.isdigit() for sign in row["question"])
    assert row["question"][0].isupper() or row["question"][0].isdigit()
    assert row["question"][-1] in ".?"


def test_held_out_shares_no_template_with_training() -> None:
    splits: dict[str, set[str]] = {"train": set(), "held_out": set()}
    families: dict[str, set[str]] = {"train": set(), "held_out": set()}
    for row in ROWS:
        splits[row["split"]].add(row["template"])
        families[row["split"]].add(row["family"])
    assert splits["train"] & splits["held_out"] == set()
    assert families["held_out"] - families["train"] == {"modular", "systems"}
    assert families["train"] <= families["held_out"]


def test_task_serves_both_splits_and_levels() -> None:
    task = MathTask()
    assert len(task.problems("train")) + len(task.problems("held_out")) == len(ROWS)
    easy = MathTask(variant="easy")
    assert {p.private["level"] for p in (*easy.problems("train"), *easy.problems("held_out"))} == {"easy"}
    assert len(MathTask(variant="hard").problems("train")) == len(task.problems("train"))


def test_right_answer_passes_in_every_shipped_problem() -> None:
    task = MathTask()
    for problem in (*task.problems("train"), *task.problems("held_out")):
        assert task.grade(problem, f"So it is \\boxed{{{problem.private['answer']}}}.").success
        assert not task.grade(problem, "So it is \\boxed{1234567}.").success
        assert problem.messages[-1]["content"].count("\\boxed{") == 2
