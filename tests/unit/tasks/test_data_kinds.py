"""Rows of public sets as published: the task they are for, the whole question, the right gold, the split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.tasks.data.check import check_rows
from sdpo_mlx.tasks.data.fields import split_named
from sdpo_mlx.tasks.registry import ROW_TASKS, row_parser
from sdpo_mlx.types import Problem

Row = dict[str, Any]
METAL = ["iron", "sulfur", "neon", "iodine"]


def written(folder: Path, *rows: Row) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(path)


def read(row: Row, task: str) -> Problem:
    (problem,) = row_parser(task)(row, "rows.jsonl:1")
    return problem


def asked(problem: Problem) -> str:
    return "\n".join(message["content"] for message in problem.messages)


CHOICES: dict[str, tuple[Row, str]] = {
    "MMLU": ({"question": "Which is a metal?", "subject": "chemistry", "choices": METAL, "answer": 0}, "iron"),
    "MMLU by letter": ({"question": "Which is a gas?", "choices": METAL, "answer": "C"}, "neon"),
    "MMLU by text": ({"question": "Which is a gas?", "choices": METAL, "answer": "Neon".lower()}, "neon"),
    "MMLU from a table": ({"question": "Which is a gas?", "choices": str(METAL), "answer": 2.0}, "neon"),
    "MMLU-Pro": (
        {
            "question_id": 70,
            "question": "Which is a gas?",
            "options": METAL,
            "answer": "C",
            "answer_index": 2,
            "cot_content": "",
            "category": "chemistry",
            "src": "x",
        },
        "neon",
    ),
    "SAT": ({"question": "If k=3, what is x?", "options": "A) 2 B) 4 C) 9 D) 10", "Answer": "D"}, "10"),
    "AQuA": (
        {"question": "How far?", "options": ["A)21", "B)21.5", "C)22"], "rationale": "r", "correct": "B"},
        "21.5",
    ),
    "MathQA": (
        {
            "Problem": "What is the loan?",
            "Rationale": "r",
            "options": "a ) 38 , b ) 27.675 , c ) 30 , d ) data inadequate , e ) none of these",
            "correct": "d",
        },
        "data inadequate",
    ),
    "MedQA": (
        {
            "question": "Which drug?",
            "answer": "Nitrofurantoin",
            "options": {"A": "Ampicillin", "B": "Nitrofurantoin", "C": "Doxycycline"},
            "answer_idx": "B",
        },
        "Nitrofurantoin",
    ),
    "C-Eval": (
        {"question": "Which is a gas?", "A": "iron", "B": "sulfur", "C": "neon", "D": "iodine", "answer": "C"},
        "neon",
    ),
    "CMMLU": (
        {"Question": "Which is a gas?", "A": "iron", "B": "neon", "C": "tin", "D": "lead", "Answer": "B"},
        "neon",
    ),
    "AGIEval": (
        {
            "passage": None,
            "question": "Which?",
            "options": ["(A)one", "(B)two", "(C)three"],
            "label": "C",
            "answer": None,
        },
        "three",
    ),
    "ARC in its own file": (
        {
            "id": "a1",
            "question": {
                "stem": "Which is a gas?",
                "choices": [{"text": "tin", "label": "A"}, {"text": "neon", "label": "B"}],
            },
            "answerKey": "B",
        },
        "neon",
    ),
    "OpenBookQA": (
        {
            "id": "o1",
            "question_stem": "A gas is",
            "choices": {"text": ["tin", "neon"], "label": ["A", "B"]},
            "answerKey": "B",
        },
        "neon",
    ),
    "answer_choices": ({"question": "Which is a gas?", "answer_choices": METAL, "answer": "C"}, "neon"),
    "prompt": ({"prompt": "Which is a gas?", "options": METAL, "answer": "C"}, "neon"),
    "RACE": (
        {"article": "Ann likes tin.", "question": "What does she like?", "options": ["tin", "neon"], "answer": "A"},
        "tin",
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_multiple_choice_is_recognised_and_keeps_its_right_option(name: str, tmp_path: Path) -> None:
    row, right = CHOICES[name]
    checked = check_rows(written(tmp_path, row))
    assert (checked.task, checked.bad) == ("science", ())
    problem = read(row, "science")
    options = problem.private["options"]
    assert options["ABCDEFGHIJ".index(problem.private["right"])] == right
    assert all(f": {option}" in asked(problem) for option in options)


@pytest.mark.parametrize("name", [name for name, (row, _) in CHOICES.items() if {"options", "choices", "A"} & {*row}])
def test_options_are_never_dropped_by_mathematics(name: str) -> None:
    row = {**CHOICES[name][0], "answer": "1"}
    with pytest.raises(DataError, match=r"[Uu]se --task science"):
        read({**row, "question": "Which?"}, "math")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": 4}, "names none of the options"),
        ({"answer": "E"}, "names none of the options"),
        ({"answer": True}, "names none of the options"),
        ({"answer": "C", "answer_index": 1}, "answer and answer_index name different options"),
        ({"choices": ["B", "A"], "answer": "A"}, "the letter of one option and the text of another"),
        ({"choices": ["one"]}, "choices is missing or not a list of texts"),
        ({"choices": "no letters"}, "choices is missing or not a list of texts"),
        ({"choices": ["a", "b"], "options": [], "answer": 7}, "names none of the options"),
    ],
)
def test_choice_without_one_right_option_is_refused(change: Row, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read({**CHOICES["MMLU"][0], **change}, "science")


WORDS: dict[str, tuple[Row, Sequence[str], str]] = {
    "SVAMP": (
        {
            "ID": "chal-1",
            "Body": "There are 87 oranges and 290 bananas in Philip's collection.",
            "Question": "How big is each group?",
            "Equation": "( 290.0 / 2.0 )",
            "Answer": 145.0,
            "Type": "Common-Division",
        },
        ("87 oranges", "How big"),
        "145",
    ),
    "SVAMP with a part": ({"Body": "b", "Question": "How much?", "Answer": 0.5}, ("b", "How much"), "0.5"),
    "ASDiv": (
        {
            "body": "Seven red apples and two green apples are in the basket.",
            "question": "How many apples are in the basket?",
            "solution_type": "Addition",
            "answer": "9 (apples)",
            "formula": "7+2=9",
        },
        ("Seven red", "How many"),
        "9",
    ),
    "ASDiv, several": ({"body": "b", "question": "How many?", "answer": "6 (red); 8 (blue)"}, ("b",), "6, 8"),
    "ASDiv, a word": ({"body": "b", "question": "Who?", "answer": "Ann"}, ("b",), "Ann"),
    "TabMWP": (
        {
            "question": "How many in all?",
            "choices": None,
            "answer": "1,250",
            "unit": None,
            "table_title": "Fruit",
            "table": "apples | 1,000\npears | 250",
            "split": "test",
        },
        ("Fruit", "pears | 250", "How many"),
        "1,250",
    ),
    "context": ({"context": "Let x be 3.", "problem": "What is 2x?", "answer": 6}, ("Let x be 3.", "2x"), "6"),
    "passage": ({"passage": ["One.", "Two."], "question": "How many words?", "answer": 2}, ("One.\nTwo.",), "2"),
    "story": ({"Story": "Ann has 2.", "question": "How many?", "answer": 2}, ("Ann has 2.",), "2"),
    "Alpaca's input": ({"question": "Solve for x.", "input": "x + 1 = 2", "answer": "1"}, ("Solve", "x + 1 = 2"), "1"),
    "ASDiv without its story": ({"question": "How many apples?", "answer": "9 (apples)"}, ("How many",), "9"),
    "no unit": ({"question": "Which residue?", "answer": "7 (mod 9)"}, ("Which",), "7 (mod 9)"),
    "no unit, a base": ({"question": "Which?", "answer": "101 (base two)"}, ("Which",), "101 (base two)"),
    "question_context": ({"question_context": "Let x be 3.", "question": "2x?", "answer": 6}, ("Let x be 3.",), "6"),
    "passages": ({"Passages": ["One.", "Two."], "question": "How many?", "answer": 2}, ("One.\nTwo.",), "2"),
    "verl": (
        {
            "prompt": [{"role": "user", "content": "How many? Use \\boxed{}."}],
            "context": "Ann has 2.",
            "reward_model": {"ground_truth": "2"},
        },
        ("Ann has 2.", "How many"),
        "2",
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_question_in_two_fields_is_read_whole(name: str, tmp_path: Path) -> None:
    row, parts, gold = WORDS[name]
    checked = check_rows(written(tmp_path, row))
    assert (checked.task, checked.bad) == ("math", ())
    problem = read(row, "math")
    places = [asked(problem).index(part) for part in parts]
    assert places == sorted(places)
    assert problem.private["answer"] == gold


def test_part_that_stands_in_the_question_is_not_repeated() -> None:
    row = {"context": "Ann has 2.", "question": "Ann has 2. How many?", "answer": 2}
    assert asked(read(row, "math")).count("Ann has 2.") == 1


@pytest.mark.parametrize("task", ["math", "science", "judge"])
@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"context": {"title": ["a"], "sentences": [["b"]]}}, "context carries a part of the question"),
        ({"table": [["a", "b"]]}, "table carries a part of the question"),
        ({"image": "iVBORw0"}, "image holds a picture"),
        ({"image_2": {"bytes": "x"}}, "image_2 holds a picture"),
    ],
)
def test_part_that_cannot_be_shown_is_refused(task: str, part: Row, said: str) -> None:
    rows = {
        "math": {"question": "?", "answer": 1},
        "science": {"question": "?", "choices": METAL, "answer": 0},
        "judge": {"prompt": "?"},
    }
    with pytest.raises(DataError, match=said):
        read({**rows[task], **part}, task)


def test_judge_shows_the_parts_of_a_question() -> None:
    problem = read({"prompt": "Translate.", "input": "Guten Tag", "context": "A letter."}, "judge")
    assert asked(problem) == "A letter.\n\nTranslate.\n\nGuten Tag"
    with pytest.raises(DataError, match="holds options"):
        read({"prompt": "Which?", "options": METAL}, "judge")


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("code", {"task_id": 1, "text": "Add.", "code": "x", "test_list": ["assert f(1) == 1"], "context": "A story."}),
        ("tools", {"prompt": "Call it.", "answer": [{"Action": "f", "Action_Input": "{}"}], "context": "A story."}),
        ("rubric", {"prompt": "Write.", "checks": [{"kind": "words", "value": 1}], "context": "A story."}),
    ],
)
def test_layouts_that_read_no_parts_refuse_them(task: str, row: Row) -> None:
    with pytest.raises(DataError, match="context"):
        read(row, task)
    assert row_parser(task)({name: value for name, value in row.items() if name != "context"}, "rows.jsonl:1")


SPLIT_ROWS: dict[str, Row] = {
    "code": {"id": "a", "statement": "Add.", "entry": "f", "tests": [{"args": [1], "expected": 1}]},
    "math": {"question": "1+1?", "answer": 2},
    "tools": {
        "messages": [{"role": "user", "content": "Call f."}],
        "tools": [{"name": "f"}],
        "expected": [{"name": "f", "arguments": {}}],
    },
    "science": {"question": "Which?", "choices": METAL, "answer": 0},
    "rubric": {"prompt": "Write.", "checks": [{"kind": "words", "value": 1}]},
    "judge": {"prompt": "Write."},
    "./mine.py": {"prompt": "Write."},
}
PUBLIC_ROWS: dict[str, Row] = {
    "code": {"task_id": 1, "text": "Add.", "code": "x", "test_list": ["assert f(1) == 1"]},
    "math": {"Body": "b", "Question": "q?", "Answer": 1.0},
    "tools": {"prompt": "Call it.", "answer": [{"Action": "f", "Action_Input": "{}"}]},
    "science": {"question": "q?", "correct_answer": "a", "distractor1": "b", "distractor2": "c", "distractor3": "d"},
}


@pytest.mark.parametrize("rows", [SPLIT_ROWS, PUBLIC_ROWS], ids=["own", "public"])
@pytest.mark.parametrize(
    "split", ["train", "validation", "valid", "val", "dev", "test", "held_out", "Test", "TRAIN", ""]
)
def test_split_means_the_same_in_every_task(split: str, rows: dict[str, Row]) -> None:
    wanted = "" if not split else "train" if split.lower() == "train" else "held_out"
    assert {*SPLIT_ROWS} == {*ROW_TASKS, "./mine.py"}
    for task, row in rows.items():
        assert read({**row, "split": split}, task).private.get("split", "") == wanted, task
        assert read({**row, "split": None}, task).private.get("split", "") == "", task


@pytest.mark.parametrize("split", ["trian", "main", 3, ["train"], "train_test"])
def test_unknown_split_is_refused_in_every_task(split: object) -> None:
    for rows in (SPLIT_ROWS, PUBLIC_ROWS):
        for task, row in rows.items():
            with pytest.raises(DataError, match="split is neither train nor held_out"):
                read({**row, "split": split}, task)


def test_names_of_splits_of_public_sets() -> None:
    names = {
        "auxiliary_train": "train",
        "train_sft": "train",
        "test_sft": "held_out",
        "validation_matched": "held_out",
        "test.clean": "held_out",
        "held-out": "held_out",
        "main": "",
        "contest": "",
        "devoted": "",
    }
    assert {name: split_named(name) for name in names} == names


def test_hint_of_scienceqa_is_part_of_its_question() -> None:
    row = {"question": "Which?", "choices": METAL, "answer": 0, "image": None, "hint": "It rusts.", "lecture": ""}
    assert asked(read(row, "science")).startswith("It rusts.\n\nWhich?")
