"""User-defined tasks: every accepted form works, every mistake is one line that names its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdpo_mlx.config import Config, TaskConfig
from sdpo_mlx.core.errors import ConfigError, DataError, SdpoError
from sdpo_mlx.tasks.base import Split, Task
from sdpo_mlx.tasks.custom.load import adapt
from sdpo_mlx.tasks.custom.values import to_feedback
from sdpo_mlx.tasks.grading import grade
from sdpo_mlx.tasks.registry import open_task
from sdpo_mlx.tasks.tiny.task import TinyTask
from sdpo_mlx.types import Feedback, Problem

FUNCTIONS = '''
"""Sums in words."""
def problems():
    return [{"id": f"p{n}", "prompt": f"{n} + {n}?", "sum": 2 * n} for n in range(10)]
def grade(problem, answer):
    return (1.0, "") if answer.strip() == str(problem["sum"]) else (0.0, f"{answer} is wrong")
'''
CLASS = '''
from sdpo_mlx.types import Feedback, Problem
class Sums:
    """Sums of two numbers."""
    feedback_modes = ("short", "long")
    def __init__(self, data=None, feedback=None, variant=None):
        self.said = f"{data} {feedback} {variant}"
    def problems(self, split):
        message = {"role": "user", "content": "1 + 1?"}
        return [Problem(id=split, messages=(message,), private={"sum": 2})]
    def grade(self, problem, text, *, truncated=False):
        right = text == str(problem.private["sum"]) and not truncated
        return Feedback(float(right), right, "" if right else self.said, "pass" if right else "wrong")
'''


def opened(folder: Path, source: str, variant: str = "", **settings: Any) -> Task:
    file = folder / "mine.py"
    file.write_text(source, encoding="utf-8")
    return open_task(Config(task=TaskConfig(name=f"{file}{variant}", **settings))).task


def refused(folder: Path, source: str, variant: str = "", **settings: Any) -> SdpoError:
    with pytest.raises((ConfigError, DataError)) as caught:
        opened(folder, source, variant, **settings)
    assert "\n" not in caught.value.line()
    return caught.value


def test_two_functions_are_a_task(tmp_path: Path) -> None:
    task = opened(tmp_path, FUNCTIONS)
    train, held_out = task.problems("train"), task.problems("held_out")
    assert (len(train), len(held_out), task.description) == (8, 2, "Sums in words.")
    problem = train[3]
    assert problem.messages == ({"role": "user", "content": f"{problem.id[1:]} + {problem.id[1:]}?"},)
    assert grade(task, problem, str(2 * int(problem.id[1:]))) == Feedback(1.0, True, "", "pass")
    assert grade(task, problem, "no") == Feedback(0.0, False, "no is wrong", "wrong")


def test_the_same_problems_are_held_out_each_time(tmp_path: Path) -> None:
    first, second = (opened(tmp_path, FUNCTIONS).problems("held_out") for _ in range(2))
    assert [p.id for p in first] == [p.id for p in second]


def test_one_class_is_a_task_and_gets_what_was_given(tmp_path: Path) -> None:
    task = opened(tmp_path, CLASS, ":hard", data="rows.jsonl", feedback="long")
    assert task.feedback_modes == ("short", "long")
    assert [p.id for p in task.problems("train")] == ["train"]
    assert grade(task, task.problems("held_out")[0], "3").text == "rows.jsonl long hard"
    assert not task.grade(task.problems("train")[0], "2", truncated=True).success


def test_a_name_chooses_among_several_classes(tmp_path: Path) -> None:
    two = CLASS + CLASS.replace("class Sums", "class Others").replace('"1 + 1?"', '"2 + 0?"')
    assert opened(tmp_path, two, ":Others").problems("train")[0].messages[0]["content"] == "2 + 0?"
    assert "defines several tasks: Sums, Others" in refused(tmp_path, two).line()


def test_grade_alone_is_enough_with_rows(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Say hi", "want": "hi"}\n{"prompt": "Say ho", "want": "ho", "split": "held_out"}\n')
    source = "def grade(problem, answer, truncated):\n    return answer == problem['want'] and not truncated\n"
    task = opened(tmp_path, source, data=str(rows))
    assert task.grade(task.problems("train")[0], "hi") == Feedback(1.0, True, "", "pass")
    assert not task.grade(task.problems("held_out")[0], "ho", truncated=True).success


def test_neighbouring_modules_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "words_of_mine.py").write_text("WORD = 'hi'\n")
    source = "from words_of_mine import WORD\n" + FUNCTIONS.replace("{n} + {n}?", "{WORD} {n}")
    assert opened(tmp_path, source).problems("train")[0].messages[0]["content"].startswith("hi ")


@pytest.mark.parametrize(
    ("given", "reward", "success", "text"),
    [
        (True, 1.0, True, ""),
        (False, 0.0, False, ""),
        (0.25, 0.25, False, ""),
        (np.float32(1.0), 1.0, True, ""),
        ((0, "too short"), 0.0, False, "too short"),
        ((True, "well done"), 1.0, True, ""),
        ({"reward": 0.5, "feedback": "half"}, 0.5, False, "half"),
        ({"reward": 0.5, "success": True, "feedback": "half"}, 0.5, True, ""),
        ({"reward": 0, "kind": "timeout", "feedback": None}, 0.0, False, ""),
        (Feedback(0.5, False, "x", "error"), 0.5, False, "x"),
    ],
)
def test_every_form_of_a_verdict_is_understood(given: Any, reward: float, success: bool, text: str) -> None:
    found = to_feedback(given)
    assert (found.reward, found.success, found.text) == (reward, success, text)


@pytest.mark.parametrize(
    "given", [None, "good", {}, {"reward": "1"}, {"reward": 1, "text": "x"}, (1, 2), (1, "a", "b"), [1]]
)
def test_what_is_no_verdict_is_the_graders_fault(tmp_path: Path, given: Any) -> None:
    task = opened(
        tmp_path, FUNCTIONS.partition("def grade")[0] + f"def grade(problem, answer):\n    return {given!r}\n"
    )
    assert grade(task, task.problems("train")[0], "x").kind == "grader_error"


@pytest.mark.parametrize(
    ("source", "said", "where"),
    [
        ("def problems(:\n", "SyntaxError", "mine.py:1"),
        ("import nothing_like_this\n", "nothing_like_this", "mine.py:1"),
        ("x = 1\n\ny = 1 / 0\n", "division by zero", "mine.py:3"),
        ("raise SystemExit(3)\n", "SystemExit", "mine.py:1"),
        ("def problems():\n    return []\n", "defines no task", "task.name"),
        ("def grade(p, a):\n    return 1\n", "defines no problems", "task.name"),
        ("def problems():\n    return [1]\ndef grade(p, a):\n    return 1\n", "not a dictionary", "mine.py, problem 1"),
        ("def problems():\n    return 7\ndef grade(p, a):\n    return 1\n", "TypeError", "mine.py"),
        ("def problems():\n    raise ValueError('why')\ndef grade(p, a):\n    return 1\n", "why", "mine.py:2"),
        ("def problems():\n    return [{'q': 1}]\ndef grade(p, a):\n    return 1\n", "prompt is missing", "problem 1"),
        (FUNCTIONS.replace('"sum"', '"split": "tset", "sum"'), "neither train nor held_out", "problem 1"),
        (FUNCTIONS.replace('"prompt": f"{n} + {n}?"', '"messages": [{"role": "me"}]'), "no known role", "problem 1"),
        (FUNCTIONS.replace('"sum"', '"tools": "add", "sum"'), "tools is not a list", "problem 1"),
        (FUNCTIONS.replace('"sum"', '"tools": [{"description": 1}], "sum"'), "not an object with a name", "tool 1"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_says_where(tmp_path: Path, source: str, said: str, where: str) -> None:
    line = refused(tmp_path, source).line()
    assert said in line
    assert where in line


def test_settings_that_the_task_does_not_take_are_refused(tmp_path: Path) -> None:
    assert "takes no data" in refused(tmp_path, FUNCTIONS, data="rows.jsonl").line()
    assert "takes no feedback" in refused(tmp_path, FUNCTIONS, feedback="loud").line()
    assert "takes no variant" in refused(tmp_path, FUNCTIONS, ":hard").line()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*absent\.py.*sdpo init"):
        open_task(Config(task=TaskConfig(name=str(tmp_path / "absent.py"))))


def test_bad_rows_of_the_users_data_are_named_by_line(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "ok"}) + '\n{"prompt": 7}\nno json\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: prompt is missing.*rows\.jsonl:3"):
        opened(tmp_path, "def grade(p, a):\n    return 1\n", data=str(rows))


def test_tools_of_a_row_reach_the_chat_template(tmp_path: Path) -> None:
    tool = '{"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}'
    task = opened(tmp_path, FUNCTIONS.replace('"sum"', f'"tools": [{tool}], "sum"'))
    for problem in task.problems("train"):
        assert [each["function"]["name"] for each in problem.tools] == ["add"]
        assert problem.tools[0]["type"] == "function"


ROWS = [{"id": n, "prompt": f"Say {n}.", "n": n} for n in range(10)]


def echo(problem: dict[str, Any], answer: str) -> tuple[bool, str]:
    return answer == str(problem["n"]), "another number"


class Echo:
    """Repeat a number."""

    problems = ROWS

    def grade(self, problem: dict[str, Any], answer: str) -> tuple[bool, str]:
        return echo(problem, answer)


class Patient(Task):
    """A subclass with a method of each kind."""

    max_turns = 3
    needs_model = True  # type: ignore[assignment]

    def __init__(self) -> None:
        self.started: list[Any] = []

    def problems(self, split: Split) -> Any:
        return [Problem(f"{split}-{n}", ({"role": "user", "content": "Hi."},)) for n in range(2)]

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Any:
        return not truncated

    def reply(self, problem: Problem, answers: Any) -> str | None:
        return f"{problem.id}: {len(answers)}"

    def counters(self) -> dict[str, float]:
        return {"calls": 3.0}

    def start(self, model: Any) -> None:
        self.started.append(model)


@pytest.mark.parametrize("source", [Echo(), (ROWS, echo), (lambda: ROWS, echo)], ids=["object", "list", "functions"])
def test_an_object_or_a_pair_becomes_a_task(source: object) -> None:
    task = adapt(source)
    assert isinstance(task, Task)
    assert (len(task.problems("train")), len(task.problems("held_out"))) == (8, 2)
    problem = task.problems("train")[0]
    assert grade(task, problem, problem.id) == Feedback(1.0, True, "", "pass")
    assert grade(task, problem, "x") == Feedback(0.0, False, "another number", "wrong")
    assert not task.replies
    assert (task.max_turns, task.solution(problem), task.counters(), task.needs_model) == (1, None, {}, False)


def test_a_subclass_keeps_its_hooks_and_its_grades_may_have_any_form() -> None:
    source = Patient()
    task = adapt(source)
    problem = task.problems("held_out")[0]
    assert (task.replies, task.grades_episodes, task.max_turns, task.needs_model) == (True, False, 3, True)
    assert (task.reply(problem, ["a"]), task.counters()) == ("held_out-0: 1", {"calls": 3.0})
    assert grade(task, problem, "x") == Feedback(1.0, True, "", "pass")
    assert not grade(task, problem, "x", earlier=["y"], truncated=True).success
    task.start("model")  # type: ignore[arg-type]
    task.close()
    assert source.started == ["model"]


def test_a_shipped_task_is_returned_unchanged() -> None:
    task = TinyTask()
    assert adapt(task) is task


def test_a_limit_on_turns_holds_for_an_object_too() -> None:
    assert open_task(Config(task=TaskConfig(name="mine", max_turns=2)), Patient()).task.max_turns == 2
    with pytest.raises(ConfigError, match="has one turn"):
        open_task(Config(task=TaskConfig(name="mine", max_turns=2)), Echo())


def test_a_subclass_in_a_file_needs_only_grade_with_rows(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Say hi", "want": "hi"}\n')
    source = (
        "from sdpo_mlx.tasks.base import Task\nclass Mine(Task):\n    def __init__(self, data): pass\n"
        "    def grade(self, problem, text, *, truncated=False): return text == problem['want']\n"
    )
    task = opened(tmp_path, source, data=str(rows))
    assert task.grade(task.problems("train")[0], "hi").success
    assert not task.replies


@pytest.mark.parametrize("source", [None, 3, "code", Echo, (ROWS, 3), object()])
def test_anything_else_is_refused_in_one_line(source: object) -> None:
    with pytest.raises(ConfigError, match="is not a task") as caught:
        adapt(source)
    assert "\n" not in caught.value.line()


def test_several_turns_need_a_number_of_turns(tmp_path: Path) -> None:
    source = FUNCTIONS + "def reply(problem, answers):\n    return None\n"
    assert "defines reply but not turns" in refused(tmp_path, source).line()
    assert opened(tmp_path, source + "turns = 2\n").max_turns == 2


def test_the_fingerprint_follows_the_grader() -> None:
    other = (ROWS, lambda problem, answer: 1.0)
    assert adapt((ROWS, echo)).fingerprint == adapt((ROWS, echo)).fingerprint
    assert len({adapt(source).fingerprint for source in ((ROWS, echo), other, Echo(), Patient())}) == 4
