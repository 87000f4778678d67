"""Rows of public layouts become problems; what is wrong in one is named with its line (promise 11).

The fixtures are problems of our own in those layouts; `tests/data/layouts` holds a few rows of each.
"""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import DATA

from sdpo_mlx.config import SandboxConfig, TaskConfig
from sdpo_mlx.core.errors import DataError
from sdpo_mlx.sandbox.choice import open_sandbox
from sdpo_mlx.tasks.code.formats.detect import problem_from_any
from sdpo_mlx.tasks.code.task import CodeTask
from sdpo_mlx.tasks.data.sources import collect_rows
from sdpo_mlx.types import Problem

LAYOUTS = DATA / "layouts"
needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing: apt install bubblewrap")

# By layout and problem: kinds of its tests, how many are public, its entry, a right answer and a wrong one.
PROBLEMS: dict[str, dict[str, tuple[dict[str, int], int, str | None, str, str]]] = {
    "livecodebench": {
        "own_socks": ({"stdin": 3}, 1, None, "print(min(map(int, input().split())))", "print(3)"),
        "own_fence": (
            {"functional": 3},
            1,
            "fenceWidth",
            "class Solution:\n"
            "    def fenceWidth(self, planks: List[int], gap: int) -> int:\n"
            "        return sum(planks) + gap * max(0, len(planks) - 1)",
            "def fenceWidth(planks, gap):\n    return sum(planks) + gap",
        ),
        "own_echo": ({"stdin": 2}, 1, None, "s = input()\nprint(s)\nprint(s)", "print('a\\na')"),
    },
    "mbpp": {
        "mbpp-9001": (
            {"functional": 4},
            1,
            "widest_gap",
            "def widest_gap(xs):\n    return max(abs(a - b) for a, b in zip(xs, xs[1:]))",
            "def widest_gap(xs):\n    return 3",
        ),
        "mbpp-9002": (
            {"functional": 1, "code": 1},
            1,
            "mean_area",
            "def mean_area(rs):\n    return math.pi * (sum(rs) / len(rs)) ** 2",
            "def mean_area(rs):\n    return math.pi",
        ),
    },
    "mbpp_plus": {
        "mbpp-9003": (
            {"functional": 5},
            1,
            "halves",
            "def halves(xs):\n    return [x / 2 + 1e-9 * (x == 3) for x in xs]",
            "def halves(xs):\n    return [x // 2 for x in xs]",
        ),
        "mbpp-9004": (
            {"functional": 1, "code": 1},
            1,
            "letters",
            "def letters(s):\n    return list(dict.fromkeys(s))",
            "def letters(s):\n    return ['a', 'b']",
        ),
    },
    "humaneval": {
        "Own/0": (
            {"functional": 3},
            1,
            "tail",
            "def tail(xs: List[int], n: int) -> List[int]:\n    return xs[len(xs) - n:]",
            "def tail(xs, n):\n    return xs[-n:]",
        ),
        "Own/1": (
            {"code": 1},
            1,
            "unmirrored",
            "def unmirrored(s):\n    return s[: len(s) // 2]",
            "def unmirrored(s):\n    return s",
        ),
    },
    "humaneval_plus": {
        "OwnPlus/0": (
            {"functional": 3},
            1,
            "third",
            "def third(x):\n    return x / 3",
            "def third(x):\n    return x // 3",
        ),
        "OwnPlus/1": (
            {"code": 1},
            1,
            "root",
            "def root(n):\n    return int(n ** 0.5)",
            "def root(n):\n    return n // 2",
        ),
    },
    "apps": {
        "apps-71": ({"stdin": 3}, 1, None, "input()\nprint(sum(map(int, input().split())))", "print(3)"),
        "apps-72": ({"functional": 2}, 1, "turned", "def turned(x):\n    return -x", "def turned(x):\n    return x"),
        "apps-73": ({"functional": 2}, 1, "alone", "def alone(x):\n    return [x]", "def alone(x):\n    return x"),
    },
    "taco": {
        "taco-": ({"stdin": 2}, 1, None, "print(min(map(int, input().split())))", "print(input().split()[0])"),
        "taco-*": ({"functional": 2}, 1, "twice", "def twice(x):\n    return x * 2", "def twice(x):\n    return x + 2"),
    },
    "authors": {
        "livecodebench-0": (
            {"functional": 2},
            1,
            "square",
            "class Solution:\n    def square(self, x):\n        return x * x",
            "def square(x):\n    return 9",
        ),
        "livecodebench-0-held-out": (
            {"functional": 2},
            1,
            "square",
            "def square(x):\n    return x * x",
            "def square(x):\n    return x",
        ),
        "livecodebench-1": ({"stdin": 2}, 1, None, "print(len(input().split()))", "print(2)"),
        "mbppplus-7": ({"code": 1}, 1, None, "def cube(x):\n    return x ** 3", "def cube(x):\n    return x"),
    },
    "ours": {
        "own-add": ({"functional": 2}, 1, "add", "def add(a, b):\n    return a + b", "def add(a, b):\n    return 3"),
        "own-either": (
            {"functional": 1},
            0,
            "corner",
            "def corner():\n    return SIDES",
            "def corner():\n    return 1",
        ),
    },
}
ALL = [(layout, index) for layout, rows in PROBLEMS.items() for index in range(len(rows))]


def _problems(layout: str) -> list[Problem]:
    return collect_rows(str(LAYOUTS / f"{layout}.jsonl"), problem_from_any).items


def _rows(layout: str) -> list[dict[str, Any]]:
    lines = (LAYOUTS / f"{layout}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_fixture_is_described() -> None:
    files = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in LAYOUTS.glob("*.jsonl")}
    assert files == {layout: len(rows) for layout, rows in PROBLEMS.items()}


@pytest.mark.parametrize(("layout", "index"), ALL)
def test_row_becomes_the_problem_that_it_means(layout: str, index: int) -> None:
    name, (kinds, public, entry, _, _) = list(PROBLEMS[layout].items())[index]
    problem = _problems(layout)[index]
    tests = problem.private["tests"]
    assert problem.id == name if not name.startswith("taco") else problem.id.startswith("taco-")
    assert Counter(test["kind"] for test in tests) == kinds
    assert sum(test["public"] for test in tests) == public
    assert problem.private["entry"] == entry


@pytest.fixture(scope="module")
def sandbox() -> Any:
    return open_sandbox(SandboxConfig(kind="bubblewrap", seconds=6.0))


@needs_bwrap
@pytest.mark.parametrize("layout", PROBLEMS)
def test_right_answers_pass_and_wrong_ones_hear_why(layout: str, sandbox: Any) -> None:
    task = CodeTask(sandbox, TaskConfig(name="code", data=str(LAYOUTS / f"{layout}.jsonl")))
    by_id = {problem.id: problem for split in ("train", "held_out") for problem in task.problems(split)}  # type: ignore[arg-type]
    for problem, (_, _, _, right, wrong) in zip(_problems(layout), PROBLEMS[layout].values(), strict=True):
        passed = task.grade(by_id[problem.id], f"```python\n{right}\n```")
        failed = task.grade(by_id[problem.id], f"```python\n{wrong}\n```")
        assert (passed.success, passed.text) == (True, ""), problem.id
        assert not failed.success, problem.id
        assert failed.text, problem.id


def test_private_tests_of_livecodebench_stay_hidden() -> None:
    tests = _problems("livecodebench")[0].private["tests"]
    assert [(test["input"], test["public"]) for test in tests] == [
        ("3 5\n", True),
        ("0 9\n", False),
        ("7 7\n", False),
    ]


def test_wrapped_value_is_right_in_both_forms_unless_a_list_is_promised() -> None:
    _, wrapped, promised = _problems("apps")
    assert wrapped.private["tests"][0]["expected"] == -1
    assert wrapped.private["tests"][0]["alternatives"] == [[-1]]
    assert promised.private["tests"][0]["expected"] == [1]
    assert "alternatives" not in promised.private["tests"][0]


def test_messages_of_the_authors_rows_stay_as_they_are() -> None:
    problem = _problems("authors")[0]
    assert problem.messages == ({"role": "user", "content": "Write square(x)."},)
    assert [each.private["split"] for each in _problems("authors")[:2]] == ["train", "held_out"]


def test_assertions_of_mbpp_that_are_told_are_public_and_no_other() -> None:
    problem = _problems("mbpp")[0]
    assert "widest_gap([1, 4, 2]) == 3" in problem.messages[0]["content"]
    assert "widest_gap([9, 1, 2])" not in problem.messages[0]["content"]


def _with(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {name: value for name, value in {**row, **changes}.items() if value is not ...}


def _packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


class _Evil:
    """Whose pickle would write a file when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("unpickled", "w"))


# Layout, row, what is changed in it, what the error must say.
MALFORMED: list[tuple[str, int, Callable[[dict[str, Any]], dict[str, Any]], str]] = [
    ("livecodebench", 0, _with(question_content=" "), "question_content is missing"),
    ("livecodebench", 0, _with(question_content=...), "nearest is LiveCodeBench, which has question_content too"),
    ("livecodebench", 0, _with(public_test_cases="{}"), "public_test_cases is neither JSON nor base64"),
    ("livecodebench", 0, _with(public_test_cases='[{"input": 1}]'), "public_test_cases 1, a test case has no input"),
    ("livecodebench", 0, _with(private_test_cases="[{"), "private_test_cases is not JSON"),
    ("livecodebench", 0, _with(private_test_cases="%%"), "private_test_cases is neither JSON nor base64"),
    ("livecodebench", 0, _with(private_test_cases="aGVsbG8="), "private_test_cases holds no zlib data"),
    ("livecodebench", 0, _with(private_test_cases=_packed(pickle.dumps(_Evil()))), "pickles are not run"),
    (
        "livecodebench",
        0,
        _with(private_test_cases=_packed(pickle.dumps("{}"))),
        "private_test_cases is missing or not a list",
    ),
    ("livecodebench", 0, _with(metadata="[]"), "metadata is not a JSON object"),
    ("livecodebench", 0, _with(starter_code=3), "starter_code is not text"),
    ("livecodebench", 1, _with(metadata="{}"), "metadata lacks func_name"),
    (
        "livecodebench",
        1,
        _with(public_test_cases='[{"input": "x y", "output": "1", "testtype": "functional"}]'),
        "line 1 of input is not JSON",
    ),
    (
        "livecodebench",
        0,
        _with(public_test_cases='[{"input": "", "output": "", "testtype": "web"}]'),
        "testtype is unknown",
    ),
    ("mbpp", 0, _with(test_list=[]), "test_list is empty"),
    ("mbpp", 0, _with(test_list="assert f()"), "test_list is not a list of texts"),
    ("mbpp", 0, _with(test_list=["assert f("]), "assertion 1 is not Python"),
    ("mbpp", 0, _with(test_list=["assert 1 == 1"], challenge_test_list=[]), "test_list calls no one function"),
    ("mbpp", 0, _with(text=7), "text is missing or not text"),
    ("mbpp", 0, _with(test_setup_code="import ("), "test_setup_code is not Python"),
    ("mbpp", 0, _with(test_list=...), "test_list"),
    ("mbpp_plus", 0, _with(test="for x in"), "test is not Python"),
    ("humaneval", 0, _with(test="def check("), "test is not Python"),
    ("humaneval", 0, _with(prompt="def tail("), "prompt is not Python"),
    ("humaneval", 0, _with(entry_point="head"), "prompt doesn't define entry_point"),
    ("humaneval", 0, _with(entry_point=None), "entry_point is missing"),
    ("humaneval", 0, _with(test=...), "nearest is HumanEval, which has test too"),
    ("apps", 0, _with(input_output="{"), "input_output is not JSON"),
    ("apps", 0, _with(input_output="[]"), "input_output is not a JSON object"),
    ("apps", 0, _with(input_output=""), "input_output is missing"),
    ("apps", 0, _with(input_output='{"inputs": ["1"]}'), "lacks inputs or outputs"),
    ("apps", 0, _with(input_output='{"inputs": ["1"], "outputs": []}'), "has 1 inputs and 0 outputs"),
    ("apps", 0, _with(input_output='{"inputs": [{}], "outputs": ["1"]}'), "an input or output is not text"),
    ("apps", 1, _with(input_output='{"fn_name": "f", "inputs": [3], "outputs": [3]}'), "are not a list"),
    (
        "apps",
        1,
        _with(input_output='{"fn_name": "f g", "inputs": [[3]], "outputs": [3]}'),
        "entry is not a function name",
    ),
    ("taco", 0, _with(question=None), "question is missing"),
    ("taco", 0, _with(question=...), "nearest is APPS or TACO, which has question too"),
    ("authors", 0, _with(reward_model={"style": "math"}), "reward_model.style is 'math'"),
    ("authors", 0, _with(reward_model={"style": "code", "ground_truth": "{}"}), "tests lacks inputs or outputs"),
    ("authors", 0, _with(prompt="Write square(x)."), "prompt is not a list of messages"),
    ("authors", 0, _with(prompt=[{"role": "robot", "content": ""}]), "a message has no known role"),
    ("authors", 0, _with(extra_info=...), "which has extra_info too"),
    (
        "authors",
        0,
        _with(
            reward_model={
                "style": "code",
                "ground_truth": '{"inputs": ["1"], "outputs": ["1"], "testtype": "functional"}',
            }
        ),
        "has no known testtype",
    ),
    ("authors", 3, _with(kind="math"), "kind is not code"),
    ("authors", 3, _with(tests="-"), "tests is not JSON"),
    ("ours", 0, _with(statement=...), "statement is missing"),
    ("ours", 0, _with(tests=[]), "tests is missing, empty or not a list"),
    ("ours", 0, _with(preamble="def ("), "preamble is not Python"),
    ("ours", 0, _with(preamble=3), "preamble is not Python"),
    ("ours", 0, _with(extra=1), "unknown field 'extra'"),
    ("ours", 0, lambda row: {"colour": "red"}, "the layouts are LiveCodeBench, HumanEval"),
]


@pytest.mark.parametrize("number", range(len(MALFORMED)))
def test_malformed_row_is_named_with_its_line(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layout, index, change, said = MALFORMED[number]
    rows = _rows(layout)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [rows[1], change(rows[index])]), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        collect_rows(str(path), problem_from_any)
    message = str(caught.value)
    assert f"{path}:2: " in message
    assert said in message
    assert "\n" not in message
    assert not (tmp_path / "unpickled").exists()
