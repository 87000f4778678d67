"""`sdpo tasks`: every task grades an answer from a file, and shows what its problems offer."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from command import sdpo

from sdpo_mlx.tasks.registry import DESCRIPTIONS

OWN = """
def problems(): return [{"prompt": "a"}, {"prompt": "b"}]
def grade(problem, answer): return 0.5, "half"
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("task", [name for name in DESCRIPTIONS if not name.startswith("code")] + ["./own.py"])
def test_every_task_grades_an_answer_from_a_file_as_json(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDPO_HOME", str(Path.cwd() / "home"))
    Path("own.py").write_text(OWN, encoding="utf-8")
    Path("answer.txt").write_text("guess: 1\nI do not know.\n", encoding="utf-8")
    judge = ("--set", "model.name=tiny", "--set", "judge.max_tokens=2") if task == "judge" else ()
    code, out, err = sdpo("tasks", "grade", task, "--answer", "answer.txt", "--json", *judge)
    assert (code, err) == (0, "")
    verdict = json.loads(out)
    assert list(verdict) == ["reward", "success", "kind", "feedback"]
    assert not verdict["success"]
    assert (verdict["kind"] == "grader_error") == (task == "judge")  # the tiny model cannot judge


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing: apt install bubblewrap")
@pytest.mark.parametrize("task", ["code", "code:easy"])
def test_code_grades_an_answer_from_a_file_as_json(task: str) -> None:
    Path("answer.txt").write_text("```python\nprint(1)\n```", encoding="utf-8")
    verdict = json.loads(sdpo("tasks", "grade", task, "--answer", "answer.txt", "--json")[1])
    assert verdict["kind"] in ("wrong", "error")
    assert verdict["feedback"]


def test_grade_at_a_terminal_says_that_it_reads_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, encoding="utf-8") as terminal, os.fdopen(ours, "wb", buffering=0) as keyboard:
        monkeypatch.setattr("sys.stdin", terminal)
        keyboard.write(b"no program\n\x04")
        code, out, err = sdpo("tasks", "grade", "tiny")
    assert (code, err) == (0, "reading the answer from this terminal: end it with Ctrl-D on an empty line\n")
    assert "success no" in out


def test_judge_without_a_model_says_what_to_name() -> None:
    code, _, err = sdpo("tasks", "grade", "judge", "--answer", os.devnull)
    assert code == 2
    assert "--model NAME" in err
    assert len(err.splitlines()) == 1


def test_tasks_show_prints_the_tools_of_a_problem() -> None:
    out = sdpo("tasks", "show", "tools:json")[1]
    assert '"name": "web_search"' in out
    found = json.loads(sdpo("tasks", "show", "tools:json", "--json")[1])
    assert all(tool["type"] == "function" for tool in found["problem"]["tools"])
    assert "tools" not in json.loads(sdpo("tasks", "show", "math", "--json")[1])["problem"]


def test_set_of_test_rows_alone_is_evaluated_and_not_trained_on() -> None:
    rows = [{"question": f"{n} + 1?", "answer": n + 1, "split": "test"} for n in range(2)]
    Path("test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    named = ("--task", "math", "--data", "test.jsonl", "--group-size", "1")
    code, out, err = sdpo("eval", "tiny", *named, "--set", "rollout.max_tokens=4", "--no-cache", "--json")
    assert (code, len(json.loads(out)["problems"])) == (0, 2), err
    code, _, err = sdpo("train", "--model", "tiny", *named, "--out", "run")
    assert code == 3
    assert "no training problems (test.jsonl). Give rows whose split is train" in err
