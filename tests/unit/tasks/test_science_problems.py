"""The shipped science questions are sound: right where a machine can tell, distinct, and fairly lettered."""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections import Counter
from typing import Any

import pytest
from paths import ROOT

from sdpo_mlx.tasks.science.formats import LETTERS, normalised
from sdpo_mlx.tasks.science.task import DOMAINS, ScienceTask

FILE = ROOT / "sdpo_mlx" / "assets" / "science" / "problems.jsonl"
ROWS: tuple[dict[str, Any], ...] = tuple(json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines())
CHECKED = tuple(row for row in ROWS if "check" in row)
NUMBER = re.compile(r"([-+]?\d[\d,]*(?:\.\d+)?)(?:\s*×\s*10\^(-?\d+))?")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
FUNCTIONS = {name: getattr(math, name) for name in ("sqrt", "log", "log10", "asin", "degrees")}


def worked_out(node: ast.expr) -> float:
    """The value of a small arithmetic expression."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name(id="pi"):
            return math.pi
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -worked_out(operand)
        case ast.BinOp(op=ast.Pow()):
            return worked_out(node.left) ** worked_out(node.right)
        case ast.BinOp():
            return OPERATORS[type(node.op)](worked_out(node.left), worked_out(node.right))
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return FUNCTIONS[name](worked_out(argument))
    raise ValueError(ast.dump(node))


def number_in(option: str) -> float:
    """The first number of an option."""
    found = NUMBER.search(option)
    assert found, option
    return float(found[1].replace(",", "")) * 10.0 ** int(found[2] or 0)


def test_every_domain_has_enough_questions_at_several_levels() -> None:
    assert set(DOMAINS) == {row["domain"] for row in ROWS}
    for domain in DOMAINS:
        rows = [row for row in ROWS if row["domain"] == domain]
        assert len(rows) >= 26
        assert {row["level"] for row in rows} == {1, 2, 3}


@pytest.mark.parametrize("row", CHECKED, ids=lambda row: row["id"])
def test_right_option_is_what_the_arithmetic_gives(row: dict[str, Any]) -> None:
    value = worked_out(ast.parse(row["check"], mode="eval").body)
    assert number_in(row["right"]) == pytest.approx(value, rel=0.006)
    for option in row["wrong"]:
        assert number_in(option) != pytest.approx(value, rel=0.03)


def test_many_questions_are_worked_out_by_machine() -> None:
    assert len(CHECKED) >= 60


def test_every_question_has_a_proof_in_one_sentence() -> None:
    for row in ROWS:
        assert row["why"].endswith(".")
        assert len(row["why"].split()) >= 5
        assert row["question"] == row["question"].strip()


def test_questions_and_ids_are_distinct() -> None:
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert len({normalised(row["question"]) for row in ROWS}) == len(ROWS)
    words = [frozenset(re.findall(r"\w+", row["question"].lower())) for row in ROWS]
    alike = [
        (ROWS[i]["id"], ROWS[j]["id"])
        for i in range(len(ROWS))
        for j in range(i)
        if len(words[i] & words[j]) > 0.8 * len(words[i] | words[j])
    ]
    assert alike == [("science/materials/bcc-packing", "science/materials/fcc-packing")]  # two structures, two answers


def test_options_are_four_and_distinct() -> None:
    for row in ROWS:
        options = [row["right"], *row["wrong"]]
        assert len({normalised(option) for option in options}) == len(options) == 4


def test_length_of_an_option_does_not_betray_the_right_one() -> None:
    longest = sum(len(row["right"]) > max(map(len, row["wrong"])) for row in ROWS)
    shortest = sum(len(row["right"]) < min(map(len, row["wrong"])) for row in ROWS)
    assert longest < 0.25 * len(ROWS)
    assert shortest < 0.25 * len(ROWS)


def test_families_are_never_split_and_a_fifth_is_held_out() -> None:
    splits: dict[str, set[str]] = {}
    for row in ROWS:
        splits.setdefault(row["family"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    held_out = [row for row in ROWS if row["split"] == "held_out"]
    assert 0.15 * len(ROWS) <= len(held_out) <= 0.25 * len(ROWS)
    assert {row["domain"] for row in held_out} == set(DOMAINS)


def test_right_letters_are_spread_evenly_after_shuffling() -> None:
    task = ScienceTask()
    problems = [*task.problems("train"), *task.problems("held_out")]
    assert len(problems) == len(ROWS)
    counts = Counter(problem.private["right"] for problem in problems)
    assert set(counts) == set(LETTERS[:4])
    expected = len(ROWS) / 4
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 11.34  # chi-square, 3 degrees, 1 %


def test_prompt_shows_every_option_and_nothing_private() -> None:
    rows = {row["id"]: row for row in ROWS}
    for problem in ScienceTask().problems("train"):
        row, prompt = rows[problem.id], problem.messages[-1]["content"]
        assert row["why"] not in prompt
        lines = prompt.splitlines()
        for letter, option in zip(LETTERS, problem.private["options"], strict=False):
            assert f"{letter}: {option}" in lines
        assert problem.private["options"][LETTERS.index(problem.private["right"])] == row["right"]
