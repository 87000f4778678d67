"""`task.tests: half` trains with a random half of each problem's tests and evaluates with all, as the authors do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paths import DATA

from sdpo_mlx.config import Config, TaskConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox
from sdpo_mlx.tasks.code.task import CodeTask
from sdpo_mlx.tasks.grading import Graders
from sdpo_mlx.tasks.registry import open_task


def opened(path: Path, tests: str = "half") -> CodeTask:
    return CodeTask(UnconfinedSandbox(), TaskConfig.model_validate({"name": "code", "data": str(path), "tests": tests}))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    counts = {"one": 1, "five": 5, "forty": 40}
    lines = [
        {"id": name, "statement": name, "tests": [{"input": str(n), "output": str(n)} for n in range(count)]}
        for name, count in counts.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_every_problem_is_in_both_splits_with_half_and_with_all_of_its_tests(rows: Path) -> None:
    task = opened(rows)
    train, held_out = task.problems("train"), task.problems("held_out")
    assert [problem.id for problem in train] == ["one", "five", "forty"]
    assert [problem.id for problem in held_out] == ["one-held-out", "five-held-out", "forty-held-out"]
    assert [problem.messages for problem in train] == [problem.messages for problem in held_out]
    assert [len(problem.private["tests"]) for problem in train] == [1, 2, 20]
    assert [len(problem.private["tests"]) for problem in held_out] == [1, 5, 40]
    assert all(test["public"] for problem in train for test in problem.private["tests"])


def test_half_is_random_in_the_order_of_the_row_and_the_same_every_time(rows: Path) -> None:
    first, again = (
        [[int(test["input"]) for test in problem.private["tests"]] for problem in opened(rows).problems("train")]
        for _ in range(2)
    )
    assert first == again
    assert first[2] == sorted(set(first[2]))
    assert first[2] not in (list(range(20)), list(range(20, 40)))


def test_pairs_of_the_authors_tables_are_not_halved_again() -> None:
    found = {problem.id: problem for problem in opened(DATA / "layouts" / "authors.jsonl").rows}
    pair = found["livecodebench-0"], found["livecodebench-0-held-out"]
    assert [(len(each.private["tests"]), each.private["split"]) for each in pair] == [(2, "train"), (2, "held_out")]
    assert all(test["public"] for test in pair[0].private["tests"])
    assert len(found["livecodebench-1"].private["tests"]) == 1


def test_hanging_grader_is_told_later_where_every_test_has_its_own_limit(rows: Path) -> None:
    contest = CodeTask(UnconfinedSandbox(), TaskConfig(name="code", data=str(DATA / "layouts" / "livecodebench.jsonl")))
    assert (opened(rows).grading_seconds, contest.grading_seconds) == (120.0, 36 * 60.0)
    assert (Graders(contest).seconds, Graders(contest, 0.5).seconds) == (36 * 60.0, 0.5)


def test_only_code_has_tests_to_split() -> None:
    with pytest.raises(ConfigError, match="only the task code has tests"):
        open_task(Config(task=TaskConfig(name="math", tests="half")))
