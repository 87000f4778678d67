"""The task math: where the answer stands, what is said about a wrong one, which rows are understood."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import DATA

from sdpo_mlx.config import Config, TaskConfig
from sdpo_mlx.core.errors import ConfigError, DataError
from sdpo_mlx.tasks.math.extract import find_answer
from sdpo_mlx.tasks.math.formats import problem_from_row
from sdpo_mlx.tasks.math.task import MathTask
from sdpo_mlx.tasks.registry import open_task
from sdpo_mlx.types import Problem

FIXTURES = DATA / "math"


@pytest.fixture(scope="module")
def task() -> MathTask:
    """The shipped problems, feedback without the right answer."""
    return MathTask()


def problem(answer: str) -> Problem:
    """A problem with this right answer."""
    return problem_from_row({"question": "What is it?", "answer": answer}, "x:1")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So \\boxed{42}.", "42"),
        ("\\boxed{\\frac{1}{2}} is it", "\\frac{1}{2}"),
        ("\\boxed{1} or rather \\boxed{2}", "2"),
        ("\\[\\boxed{ \\{1, 2\\} }\\]", "\\{1, 2\\}"),
        ("\\boxed{\\boxed{3}}", "3"),
        ("\\boxed{5} and then \\boxed{6", "5"),
        ("\\boxed{ \\boxed{7}", "7"),
        ("\\fbox{8}", "8"),
        ("\\boxed 9", "9"),
        ("\\boxed{$x+1$}", "x+1"),
        ("Answer: 42", "42"),
        ("work\n#### 1,234", "1,234"),
        ("The answer is 42.", "42"),
        ("The final answer is: **$\\frac{3}{4}$**.", "\\frac{3}{4}"),
        ("**Answer:**\n3.5", "3.5"),
        ("Thus we see that the answer is \\(7\\).", "7"),
        ("Answer: 1\nNo.\nAnswer: 2", "2"),
        ("Answer: 1\n\\boxed{2}", "2"),
        ("<think>\\boxed{1}</think>\\boxed{2}", "2"),
        ("the prompt had opened: \\boxed{1}</think> Answer: 3", "3"),
    ],
)
def test_final_answer_is_found(text: str, answer: str) -> None:
    found = find_answer(text)
    assert found is not None
    assert found.text == answer


@pytest.mark.parametrize(
    "text",
    ["", "It is 42", "<think>\\boxed{42}", "Answer the question first.", "\\boxed{}", "\\boxed{42", "answers: none"],
)
def test_no_final_answer_is_found_where_none_is_given(text: str) -> None:
    assert find_answer(text) is None


@settings(deadline=None)
@given(st.text(alphabet="{}\\boxed answeris:#\n 12$*", max_size=200))
def test_any_text_is_searched_without_an_exception(text: str) -> None:
    found = find_answer(text)
    assert found is None or found.text


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 1_400_000, "{" * 10_000_000, "\n" * 10_000_000, "answer is " * 1_000_000, "* " * 5_000_000]
)
def test_ten_megabytes_are_graded_as_no_success(task: MathTask, text: str) -> None:
    feedback = task.grade(problem("42"), text)
    assert not feedback.success
    assert len(feedback.text) < 1_000


@pytest.mark.parametrize(
    ("right", "answer", "kind", "said"),
    [
        ("42", "no idea", "invalid", "No final answer was found. End with the final answer inside \\boxed{}"),
        ("42", "\\boxed{41}", "wrong", "Its form is right, its value is not equal"),
        ("1/3", "\\boxed{0.33}", "wrong", "It is a decimal, but the exact value is asked"),
        ("42", "\\boxed{41, 42}", "wrong", "It holds 2 values, but one value is asked."),
        ("42", "\\boxed{x + 1}", "wrong", "It still holds x, but a number is asked."),
        ("x + 1", "\\boxed{7}", "wrong", "It is a number, but an expression with letters is asked."),
        ("42", "\\boxed{many}", "wrong", "It is a word, but a value is asked."),
        ("\\text{odd}", "\\boxed{7}", "wrong", "A word or a letter is asked"),
        ("42", "\\boxed{4 * * 2}", "wrong", "could not be read as a mathematical expression"),
        ("5 cm", "\\boxed{5 m}", "wrong", "Its unit is not the one that is asked."),
        ("2, 3", "\\boxed{2}", "wrong", "It is one value, but several are asked."),
        ("(1, 2)", "\\boxed{(1, 5)}", "wrong", "Of its values, number 1 is right and number 2 is not."),
        ("(1, 2)", "\\boxed{(1, 2, 3)}", "wrong", "It holds 3 values, but another number of values is asked."),
        ("[1, 2]", "\\boxed{(1, 2)}", "wrong", "Its brackets are not the ones that are asked."),
        ("42", "\\boxed{1} \\boxed{2}", "wrong", "There were 2 different final answers; only the last one counts."),
        ("42", "Answer: 7", "wrong", "read from the last answer line"),
    ],
)
def test_feedback_says_what_is_wrong(task: MathTask, right: str, answer: str, kind: str, said: str) -> None:
    feedback = task.grade(problem(right), answer)
    assert (feedback.reward, feedback.success, feedback.kind) == (0.0, False, kind)
    assert said in feedback.text
    assert feedback == task.grade(problem(right), answer)


def test_truncated_answer_is_told_so(task: MathTask) -> None:
    cut = task.grade(problem("42"), "First we", truncated=True)
    assert "cut off at the length limit" in cut.text
    assert cut.kind == "invalid"
    assert "cut off" in task.grade(problem("42"), "\\boxed{41} and so", truncated=True).text
    assert task.grade(problem("42"), "\\boxed{42} and so", truncated=True).success


@pytest.mark.parametrize("answer", ["\\boxed{-4711}", "\\boxed{471.1}", "\\boxed{4712}", "\\boxed{5000}", "\\boxed{1}"])
def test_verdict_tells_neither_value_nor_sign_nor_size(task: MathTask, answer: str) -> None:
    said = task.grade(problem("4711"), answer).text
    plain = task.grade(problem("4711"), "\\boxed{1}").text
    given = answer.removeprefix("\\boxed{").removesuffix("}")
    assert said.replace(given, "1") == plain
    assert "4711" not in said.replace(given, "")


def test_right_answer_is_told_only_when_asked() -> None:
    assert MathTask.feedback_modes == ("verdict", "answer", "none")
    told = MathTask(TaskConfig(name="math", feedback="answer"))
    silent = MathTask(TaskConfig(name="math", feedback="none"))
    for text in ("\\boxed{1}", "nothing"):
        assert told.grade(problem("4711"), text).text.endswith("The right answer is `4711`.")
        assert silent.grade(problem("4711"), text).text == ""
    assert told.grade(problem("4711"), "\\boxed{4711}").text == ""


def test_feedback_quotes_hostile_text_as_plain_text(task: MathTask) -> None:
    said = task.grade(problem("1"), "\\boxed{\x1b[31m{problem}" + "9" * 500 + "}").text
    assert "\x1b" not in said
    assert len(said) < 400


def _rows(name: str) -> Sequence[Problem]:
    loaded = MathTask(TaskConfig(name="math", data=str(FIXTURES / name)))
    return [*loaded.problems("train"), *loaded.problems("held_out")]


@pytest.mark.parametrize(
    ("name", "answers", "levels"),
    [
        ("own.jsonl", ["12", "\\frac{3}{4}", "7"], ["easy", "hard", None]),
        ("gsm8k.jsonl", ["18", "1,250", "-3"], [None] * 3),
        ("math.jsonl", ["\\frac{1}{2}", "(2, 5)", "12"], ["easy", "hard", "medium"]),
        ("math500.jsonl", ["9", "\\sqrt{7}"], ["easy", "hard"]),
        ("aime.jsonl", ["204", "033", "073"], [None] * 3),
        ("deepmath.jsonl", ["\\dfrac{\\pi}{6}", "Yes"], ["medium", "easy"]),
        ("verl.jsonl", ["72", "5"], [None] * 2),
    ],
)
def test_public_layout_becomes_problems(name: str, answers: list[str], levels: list[str | None]) -> None:
    problems = {p.private["answer"]: p for p in _rows(name)}
    assert set(problems) == set(answers)
    assert [problems[answer].private["level"] for answer in answers] == levels
    assert len({p.id for p in problems.values()}) == len(answers)
    judge = MathTask()
    for found in problems.values():
        assert found.messages[-1]["role"] == "user"
        assert any(mark in message["content"] for message in found.messages for mark in ("\\boxed", "####"))
        assert judge.grade(found, f"\\boxed{{{found.private['answer']}}}").success


def test_split_of_a_row_is_kept() -> None:
    by_split = MathTask(TaskConfig(name="math", data=str(FIXTURES / "verl.jsonl")))
    assert [p.private["answer"] for p in by_split.problems("held_out")] == ["5"]


BAD: list[tuple[Any, str]] = [
    ({"text": "?"}, "the row has no known layout"),
    ({"question": "", "answer": "1"}, "question is missing or not text"),
    ({"question": 3, "answer": "1"}, "question is missing or not text"),
    ({"question": "?"}, "the right answer is missing"),
    ({"question": "?", "answer": None}, "the right answer is missing"),
    ({"question": "?", "answer": True}, "the right answer is missing"),
    ({"question": "?", "answer": ["1"]}, "the right answer is missing"),
    ({"question": "?", "answer": "so ####  "}, "the right answer is empty"),
    ({"question": "?", "answer": "1" * 2_000}, "the right answer is empty or too long"),
    ({"question": "?", "answer": "1", "level": "tricky"}, "level is not known"),
    ({"question": "?", "answer": "1", "split": "devil"}, "split is neither"),
    ({"problem": "?", "solution": "It is 4."}, "solution has no \\boxed{...}"),
    ({"prompt": "?", "reward_model": {"ground_truth": "1"}}, "prompt is not a list of messages"),
    ({"prompt": [{"role": "user"}], "reward_model": {"ground_truth": "1"}}, "a message has no known role"),
    (
        {"prompt": [{"role": "system", "content": "?"}], "reward_model": {"ground_truth": "1"}},
        "the last message is not the user's",
    ),
    ({"prompt": [{"role": "user", "content": "?"}], "reward_model": {}}, "the right answer is missing"),
]


@pytest.mark.parametrize(("row", "said"), BAD)
def test_bad_row_is_named_with_its_line(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "1+1?", "answer": 2}\n' + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        MathTask(TaskConfig(name="math", data=str(file)))
    assert f"{file}:2: " in str(caught.value)
    assert said in str(caught.value)


def test_registry_opens_the_task_with_its_levels() -> None:
    opened = open_task(Config.model_validate({"task": {"name": "math:easy"}, "model": {"name": "tiny"}}))
    assert opened.sandbox == "none"
    assert {p.private["level"] for p in opened.task.problems("train")} == {"easy"}
    for name, said in (("math:huge", "math has no level 'huge'"), ("mathe", "Did you mean math")):
        with pytest.raises(ConfigError, match=said):
            open_task(Config.model_validate({"task": {"name": name}, "model": {"name": "tiny"}}))


def test_level_that_no_row_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="no problem is of the level easy"):
        MathTask(TaskConfig(name="math", data=str(FIXTURES / "aime.jsonl")), "easy")
