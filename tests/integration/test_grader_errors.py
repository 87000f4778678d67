"""A grader that fails while a run is hot never counts against the model, and ends the run with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sdpo_cli import main as cli

ROWS = "def problems():\n    return [{'prompt': f'Write {n}', 'n': n} for n in range(10)]\n"
FAILURES = {
    "raises": ("    raise RuntimeError('the judge is down')\n", "the judge is down"),
    "nan": ("    return float('nan')\n", "not a finite number"),
    "nothing": ("    pass\n", "NoneType as reward"),
    "endless text": ("    return 0.0, 'x' * 10_000_000\n", "10,000,000 characters"),
}


def trained(folder: Path, grade: str, steps: int = 3) -> int:
    file = folder / "mine.py"
    file.write_text(f"{ROWS}def grade(problem, answer):\n{grade}", encoding="utf-8")
    sets = (
        "rollout.max_tokens=4",
        "rollout.problems_per_step=4",
        "train.eval_every=0",
        "eval.problems=1",
        "eval.samples=1",
    )
    words = ["train", "--model", "tiny", "--task", str(file), "--steps", str(steps), "--out", str(folder / "run")]
    return cli.main([*words, "--plain", *(word for each in sets for word in ("--set", each))])


@pytest.mark.parametrize("how", FAILURES)
def test_a_grader_that_always_fails_ends_the_run_with_a_sentence(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grade, said = FAILURES[how]
    assert trained(tmp_path, grade) == 3
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the grader failed 20 times in a row" in last
    assert said in last
    assert "sdpo tasks check" in last
    kept = sorted((tmp_path / "run").glob("rollouts/*"))
    assert kept
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [e["reward/mean"] for e in events if e["type"] == "step"] == [None]


@pytest.mark.parametrize("how", FAILURES)
def test_tasks_check_tells_what_the_grader_raised(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grade, said = FAILURES[how]
    file = tmp_path / "mine.py"
    file.write_text(f"{ROWS}def grade(problem, answer):\n{grade}", encoding="utf-8")
    assert cli.main(["tasks", "check", str(file)]) == 3
    assert said in capsys.readouterr().out


def test_a_failing_grader_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grade = "    return helper(answer)\ndef helper(answer):\n    return {}['units']\n"
    file = tmp_path / "mine.py"
    file.write_text(f"{ROWS}def grade(problem, answer):\n{grade}", encoding="utf-8")
    assert cli.main(["tasks", "check", str(file)]) == 3
    assert f"KeyError: 'units' ({file}:6)" in capsys.readouterr().out


def test_one_failure_among_many_does_not_end_the_run(tmp_path: Path) -> None:
    grade = "    calls.append(1)\n    assert len(calls) != 7, 'once'\n    return 0.0, 'no'\ncalls = []\n"
    assert trained(tmp_path, grade, steps=2) == 0
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert sum(e["skip/grader_error"] for e in events if e["type"] == "step") <= 1
