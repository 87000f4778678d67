"""Multiple choice: which answers count, what is said, and the layouts that rows come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.config import TaskConfig
from sdpo_mlx.core.errors import ConfigError, DataError
from sdpo_mlx.tasks.science.formats import LETTERS, problem_from_question, question_from_row
from sdpo_mlx.tasks.science.task import FEEDBACK_MODES, ScienceTask, read_letter
from sdpo_mlx.types import Problem

OPTIONS = ("Neon", "Argon gas", "K", "Iron (II)")
OWN = {"id": "q1", "question": "Which?", "right": "Neon", "wrong": ["Argon gas", "K", "Iron (II)"]}
GPQA = {
    "Question": "Which?",
    "Correct Answer": "Neon\n",
    "Incorrect Answer 1": "Argon",
    "Incorrect Answer 2": "Iron",
    "Incorrect Answer 3": "Zinc",
    "High-level domain": "Chemistry",
    "Subdomain": "Inorganic Chemistry",
    "Record ID": "rec1",
    "Explanation": "not needed",
}
SCIKNOW = {
    "question": "Which?",
    "choices": {"text": ["Argon", "Neon", "Iron", "Zinc"], "label": ["A", "B", "C", "D"]},
    "answerKey": "B",
    "type": "mcq-4-choices",
    "domain": "Chemistry",
    "details": {"level": "L1", "task": "gases", "subtask": "x"},
    "answer": "",
}
ARC = {"id": "Mercury_1", "question": "Which?", "choices": {"text": ["Argon", "Neon"], "label": ["1", "2"]}}
ARC["answerKey"] = "2"
PRO = {
    "question_id": 70,
    "question": "Which?",
    "options": [f"gas {n}" for n in range(9)] + ["Neon"],
    "answer": "J",
    "answer_index": 9,
    "cot_content": "",
    "category": "chemistry",
    "src": "x",
}
MMLU = {"question": "Which?", "subject": "chemistry", "choices": ["Argon", "Neon", "Iron", "Zinc"], "answer": 1}
SCIQ = {"question": "Which?", "correct_answer": "Neon", "distractor1": "a", "distractor2": "b", "distractor3": "c"}
SCIQ["support"] = ""
LAYOUTS = {"own": OWN, "gpqa": GPQA, "sciknow": SCIKNOW, "arc": ARC, "pro": PRO, "mmlu": MMLU, "sciq": SCIQ}


def read_row(row: dict[str, Any]) -> Problem:
    """A row's problem."""
    question = question_from_row(row, "f:1")
    assert question is not None
    return problem_from_question(question)


def opened(folder: Path, *rows: dict[str, Any], mode: str | None = None, variant: str = "") -> ScienceTask:
    """A task on rows written to a file."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ScienceTask(TaskConfig(name="science", data=str(path), feedback=mode), variant)


@pytest.mark.parametrize(
    "text",
    [
        "<answer>B</answer>",
        "<answer> b </answer>",
        "<ANSWER>\nB\n</Answer>",
        "<answer>B)</answer>",
        "<answer>B.</answer>",
        "<answer>(B)</answer>",
        "<answer>**B**</answer>",
        "<answer>Option B</answer>",
        "<answer>Answer: B</answer>",
        "<answer>B: Argon gas</answer>",
        "<answer>(b) argon  gas.</answer>",
        "<answer>Argon gas</answer>",
        "<answer>A</answer> no, wait: <answer>B</answer>",
        "<answer>A <answer>B</answer>",
        "<answer>B</answer> and then <answer>A",
        "<think>surely <answer>A</answer></think><answer>B</answer>",
        "because ... <answer>B</answer> I am sure.",
    ],
)
def test_answer_that_chooses_b_is_read_as_b(text: str) -> None:
    assert read_letter(text, OPTIONS) == ("B", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("B", "No answer tags"),
        ("", "there is no answer"),
        ("<think>hm <answer>B</answer>", "there is no answer"),
        ("<answer>B", "never closed"),
        ("</answer>B<answer>", "never closed"),
        ("<answer></answer>", "empty"),
        ("<answer>A, B</answer>", "'A, B'"),
        ("<answer>A or B</answer>", "'A or B'"),
        ("<answer>ABCD</answer>", "'ABCD'"),
        ("<answer>A) Argon gas</answer>", "one letter from A to D"),
        ("<answer>B, but A</answer>", "one letter"),
        ("<answer>E</answer>", "There is no option E; the options are A to D."),
        ("<answer>Β</answer>", "one letter"),  # a Greek capital beta
        ("<answer>2</answer>", "one letter"),
        ("<answer>Neon, Argon gas</answer>", "one letter"),
    ],
)
def test_answer_of_the_wrong_form_chooses_nothing(text: str, said: str) -> None:
    letter, fault = read_letter(text, OPTIONS)
    assert letter is None
    assert said in fault


def test_option_that_is_a_letter_is_chosen_by_its_text_where_no_such_letter_exists() -> None:
    assert read_letter("<answer>K</answer>", OPTIONS) == ("C", "")


def test_options_that_differ_by_case_only_are_told_apart() -> None:
    options = ("Aa", "AA", "aa", "It cannot be told")
    assert read_letter("<answer>aa</answer>", options) == ("C", "")
    assert read_letter("<answer>aA</answer>", options)[0] is None
    planes = ("(100)", "(011)", "$x$", "D")
    assert (
        read_letter("<answer>(011)</answer>", planes)[0] == read_letter("<answer>B: (011)</answer>", planes)[0] == "B"
    )
    assert read_letter("<answer>$x$</answer>", planes)[0] == "C"
    assert read_letter("<answer>it cannot be told</answer>", options) == ("D", "")


def test_truncated_answer_without_a_letter_is_told_so() -> None:
    assert "ran out of tokens" in read_letter("Let me think about", OPTIONS, truncated=True)[1]
    assert read_letter("<answer>A</answer> and more", OPTIONS, truncated=True)[0] == "A"


@given(st.text("<answer>/ABCDE )(.:\n", max_size=60))
def test_any_text_is_read_as_one_letter_or_a_fault(text: str) -> None:
    letter, fault = read_letter(text, OPTIONS)
    assert (letter is None) == bool(fault)
    assert letter is None or letter in LETTERS[:4]


def test_flood_of_tags_is_read_in_one_pass() -> None:
    assert read_letter("<answer>" * 50_000 + "B" + "</answer>" * 50_000, OPTIONS)[0] == "B"


def test_listing_every_letter_wins_nothing_on_average() -> None:
    task = ScienceTask()
    problems = task.problems("train")
    every = "".join(f"<answer>{letter}</answer>" for letter in "ABCD")
    wins = sum(task.grade(problem, every).success for problem in problems)
    assert wins == sum(problem.private["right"] == "D" for problem in problems)


def test_feedback_modes_add_to_one_another(tmp_path: Path) -> None:
    said = {}
    for mode in FEEDBACK_MODES:
        task = opened(tmp_path, OWN, mode=mode)
        problem = task.problems("train")[0]
        right = problem.private["right"]
        wrong = next(letter for letter in "ABCD" if letter != right)
        assert task.grade(problem, f"<answer>{right}</answer>").text == ""
        assert task.grade(problem, f"<answer>{right}</answer>").reward == 1.0
        said[mode] = (task.grade(problem, f"<answer>{wrong}</answer>"), task.grade(problem, "no idea"))
        assert [verdict.kind for verdict in said[mode]] == ["wrong", "invalid"]
        assert [verdict.reward for verdict in said[mode]] == [0.0, 0.0]
    assert [verdict.text for verdict in said["none"]] == ["", ""]
    assert said["format"][0].text == "The answer has the right form."
    assert "No answer tags" in said["format"][1].text
    assert f"Option {wrong} (" in said["letter"][0].text
    assert "Neon" not in said["letter"][0].text + said["letter"][1].text
    assert all(f"The right option is {right} ('Neon')." in verdict.text for verdict in said["full"])


def test_default_feedback_is_none() -> None:
    task = ScienceTask()
    assert task.feedback == task.feedback_modes[0] == "none"


@pytest.mark.parametrize("name", LAYOUTS)
def test_row_of_a_known_layout_keeps_its_right_answer(name: str) -> None:
    problem = read_row(LAYOUTS[name])
    options, right = problem.private["options"], problem.private["right"]
    assert options[LETTERS.index(right)] == "Neon"
    assert f"{right}: Neon" in problem.messages[0]["content"].splitlines()
    assert problem == read_row(LAYOUTS[name])


def test_fields_of_public_layouts_become_domain_family_and_id() -> None:
    assert (read_row(GPQA).id, read_row(GPQA).family, read_row(GPQA).private["domain"]) == (
        "rec1",
        "Inorganic Chemistry",
        "Chemistry",
    )
    assert (read_row(SCIKNOW).private["level"], read_row(SCIKNOW).family) == ("L1", "gases")
    assert read_row(PRO).id == "70"
    assert len(read_row(PRO).private["options"]) == 10


@pytest.mark.parametrize("name", LAYOUTS)
def test_split_of_a_row_is_kept_in_every_layout(name: str) -> None:
    assert read_row({**LAYOUTS[name], "split": "held_out"}).private["split"] == "held_out"
    assert read_row(LAYOUTS[name]).private["split"] == ""


def test_prompt_of_ten_options_goes_to_j() -> None:
    assert "options A to J" in read_row(PRO).messages[0]["content"]


def test_shuffling_depends_on_the_id_and_moves_the_right_letter() -> None:
    letters = {read_row({**OWN, "id": f"q{n}"}).private["right"] for n in range(40)}
    assert letters == set("ABCD")


def test_options_that_speak_of_others_keep_their_letters() -> None:
    for last in ("Both A and B", "All of the above", "None of these"):
        row = {**MMLU, "choices": ["Argon", "Neon", "Iron", last]}
        assert read_row(row).private["options"] == ("Argon", "Neon", "Iron", last)
    # Where the row has the right option first, keeping the order would give it away.
    rows = [{**OWN, "id": f"q{n}", "wrong": ["x", "y", "None of these"]} for n in range(40)]
    assert {read_row(row).private["right"] for row in rows} == set("ABCD")


def test_rows_that_are_no_multiple_choice_are_left_out(tmp_path: Path) -> None:
    other = {"question": "Say why.", "type": "open-ended-qa", "answerKey": "", "choices": None, "answer": "so"}
    task = opened(tmp_path, SCIKNOW, other, SCIKNOW)
    ids = [problem.id for split in ("train", "held_out") for problem in task.problems(split)]
    assert len(ids) == 2
    assert ids[1] == f"{ids[0]}#2"  # public sets repeat rows
    with pytest.raises(DataError, match="no multiple-choice question"):
        opened(tmp_path, other)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "Which?"}, "no layout of multiple-choice questions"),
        ({**OWN, "wrong": []}, "1 options are given"),
        ({**OWN, "wrong": ["Neon ."]}, "two options are the same"),
        ({**OWN, "wrong": ["a", 3]}, "wrong is missing or not a list of texts"),
        ({**OWN, "hint": "x"}, "unknown field 'hint'"),
        ({**OWN, "split": "tset"}, "split is neither"),
        ({**OWN, "question": " "}, "question is missing or not text"),
        ({**OWN, "wrong": [f"o{n}" for n in range(10)]}, "11 options are given"),
        ({key: value for key, value in GPQA.items() if key != "Incorrect Answer 2"}, "Incorrect Answer 2 is missing"),
        ({**SCIKNOW, "answerKey": "E"}, "answerKey 'E' is not one of the labels"),
        ({**SCIKNOW, "choices": ["a"]}, "choices is missing or not a list of texts"),
        ({**SCIKNOW, "choices": {"text": ["a", "b"], "label": ["A"]}}, "is not one of the labels"),
        ({**PRO, "answer_index": 3}, "answer and answer_index name different options"),
        ({**PRO, "answer_index": None, "answer": "Z"}, "names none of the options"),
        ({**MMLU, "answer": 4}, "names none of the options"),
        ({**MMLU, "answer": True}, "names none of the options"),
    ],
)
def test_bad_row_is_named_by_its_line(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, {**OWN, "id": "good"}, row)
    assert "rows.jsonl:2: " in str(caught.value)
    assert said in str(caught.value)


def test_variant_keeps_one_domain() -> None:
    task = ScienceTask(variant="physics")
    assert {problem.private["domain"] for problem in task.problems("train")} == {"physics"}
    assert task.problems("held_out")
    with pytest.raises(ConfigError, match="Did you mean physics"):
        ScienceTask(variant="phisics")


def test_unknown_feedback_mode_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none, format, letter, full"):
        opened(tmp_path, OWN, mode="loud")
