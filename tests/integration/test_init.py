"""`sdpo init` writes a working folder, after three questions or none, and overwrites nothing."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from command import sdpo
from judge_server import Server, said
from sdpo_cli import init_templates
from sdpo_cli import main as cli
from sdpo_cli.commands import init
from waiting import HANG_SECONDS

from sdpo_mlx.backends.fit import MemoryFit
from sdpo_mlx.config import Config
from sdpo_mlx.config.resolve import resolve, value_at
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models import inventory
from sdpo_mlx.models import resolve as models
from sdpo_mlx.tasks.code.task import CodeTask
from sdpo_mlx.tasks.data.check import check_rows
from sdpo_mlx.tasks.grading import grade
from sdpo_mlx.tasks.registry import open_task

SMALL = ["--set", "eval.problems=1", "--set", "eval.samples=1", "--set", "rollout.problems_per_step=2"]
SMALL += ["--set", "rollout.max_tokens=8", "--set", "rollout.group_size=2"]
COMBINATIONS = list(itertools.product(init_templates.TASKS, (True, False)))


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and a machine without models."""
    for name in ("OLLAMA_MODELS", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SDPO_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def made(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Path:
    code, _, err = sdpo("init", str(folder), *words)
    assert code == 0, err
    monkeypatch.chdir(folder)
    return folder


# ---- the folder


def test_the_starter_folder_passes_its_own_check_and_trains(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(nowhere / "mine", monkeypatch)
    assert sorted(path.name for path in Path().iterdir()) == sorted(
        ["config.yaml", "my_task.py", "problems.jsonl", "schema.json"]
    )
    assert cli.main(["tasks", "check", "./my_task.py", "--data", "problems.jsonl"]) == 0
    assert "no problems found" in capsys.readouterr().out
    assert cli.main(["data", "check", "problems.jsonl", "--task", "./my_task.py"]) == 0
    assert cli.main(["train", "-c", "config.yaml", "--steps", "1", "--out", "run", "--plain", *SMALL]) == 0
    assert (nowhere / "mine" / "run" / "adapters.safetensors").is_file()


@pytest.mark.parametrize(("task", "feedback"), COMBINATIONS)
def test_every_combination_has_rows_of_its_task_and_settings_that_resolve(
    task: str, feedback: bool, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--task", task, "--feedback" if feedback else "--no-feedback", "--model", "tiny"]
    made(nowhere / "mine", monkeypatch, *words)
    found = resolve(Path("config.yaml"))
    assert found.config.teacher.feedback is feedback
    assert found.config.rollout.group_size == (4 if feedback else 8)
    checked = check_rows("problems.jsonl", found.config.task.name)
    assert not checked.bad
    assert checked.splits["train"] >= 8
    assert checked.splits["held_out"] >= 2
    assert Path("my_task.py").exists() is (task == "own")
    validator = pytest.importorskip("jsonschema", reason="the extra rubric is not installed")
    settings = yaml.safe_load(Path("config.yaml").read_text())
    validator.validate(settings, json.loads(Path("schema.json").read_text()))


@pytest.mark.parametrize(("task", "feedback"), COMBINATIONS)
def test_config_holds_only_values_that_differ(task: str, feedback: bool) -> None:
    tree = yaml.safe_load(init_templates.settings(init_templates.InitChoices("owner/model", task, feedback)))
    given = {f"{section}.{key}": value for section, inside in tree.items() for key, value in inside.items()}
    usual = resolve(None, [], {"model.name": "owner/model", "task.name": task if task != "own" else "./my_task.py"})
    # What a person turns first stands there in any case.
    kept = {"model.name", "task.name", "rollout.group_size"}
    assert [k for k, v in given.items() if k not in kept and value_at(usual.config, k) == v] == []


@pytest.mark.parametrize(("task", "feedback"), [pair for pair in COMBINATIONS if pair[0] not in ("judge", "code")])
def test_every_grader_passes_its_check(
    task: str, feedback: bool, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(nowhere / "mine", monkeypatch, "--task", task, "--feedback" if feedback else "--no-feedback", "--yes")
    name = resolve(Path("config.yaml")).config.task.name
    code, out, _ = sdpo("tasks", "check", name, "--data", "problems.jsonl")
    assert code == 0, out
    opened = open_task(resolve(Path("config.yaml")).config).task
    problem = opened.problems("train")[0]
    assert bool(grade(opened, problem, "no answer at all").text) is feedback


def test_programs_of_the_starter_pass_the_tests_of_their_rows(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(nowhere / "mine", monkeypatch, "--task", "code", "--yes")
    try:
        task = open_task(resolve(Path("config.yaml")).config).task
    except Exception as error:  # no sandbox, whatever the reason
        pytest.skip(f"no sandbox: {error}")
    assert isinstance(task, CodeTask)
    problems = [*task.problems("train"), *task.problems("held_out")]
    assert [each.id for each in problems if not grade(task, each, str(each.reference)).success] == []
    wrong = grade(task, problems[0], "```python\ndef double(number):\n    return number\n```")
    assert not wrong.success
    assert "8" in wrong.text


def test_programs_of_the_starter_train_in_the_sandbox(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(nowhere / "mine", monkeypatch, "--task", "code", "--no-feedback", "--model", "tiny")
    code, _, err = sdpo("train", "-c", "config.yaml", "--steps", "1", "--out", "run", "--plain", *SMALL)
    if code == 4:
        pytest.skip(f"no sandbox: {err}")
    assert code == 0, err


@pytest.fixture
def judge() -> Iterator[Server]:
    server = Server()
    server.answer = lambda _: said("It is too long.\nScore: 8")
    yield server
    server.close()


def test_judge_of_the_starter_trains_behind_an_endpoint(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, judge: Server
) -> None:
    made(nowhere / "mine", monkeypatch, "--task", "judge", "--model", "tiny")
    assert "too small to judge" in Path("config.yaml").read_text()
    words = ["--steps", "1", "--out", "run", "--plain", *SMALL, "--set", f"judge.endpoint={judge.endpoint}"]
    code, _, err = sdpo("train", "-c", "config.yaml", *words)
    assert code == 0, err


def test_existing_file_is_never_overwritten(nowhere: Path) -> None:
    (nowhere / "config.yaml").write_text("mine")
    code, _, err = sdpo("init", str(nowhere))
    assert code == 2
    assert "already exists" in err
    assert [path.name for path in nowhere.iterdir()] == ["config.yaml"]
    assert (nowhere / "config.yaml").read_text() == "mine"


def test_interrupted_write_leaves_no_folder(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def stopped(path: Path, content: bytes) -> None:
        calls.append(path)
        path.write_bytes(content)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("sdpo_mlx.core.storage.write_bytes", stopped)
    assert sdpo("init", str(nowhere / "a" / "b"))[0] == 130
    assert len(calls) == 2
    assert list(nowhere.iterdir()) == []


def test_the_manifest_pins_the_rows_and_the_file_that_graded_them(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(nowhere, monkeypatch)
    assert cli.main(["train", "-c", "config.yaml", "--steps", "0", "--out", "run", "--set", "eval.problems=1"]) == 0
    manifest = json.loads((nowhere / "run" / "manifest.json").read_text())
    rows = hashlib.sha256((nowhere / "problems.jsonl").read_bytes()).hexdigest()
    assert manifest["data"] == {"source": "./problems.jsonl", "sha256": rows}
    assert manifest["task_sha256"] == hashlib.sha256((nowhere / "my_task.py").read_bytes()).hexdigest()


# ---- the model


def stocked(monkeypatch: pytest.MonkeyPatch, *held: tuple[str, models.Source, float, str]) -> None:
    """A machine that can train these: name, source, bytes of a step, how to get it."""
    found = [inventory.LocalModel(name, source, name, Path("x"), fetch=fetch) for name, source, _, fetch in held]
    found += [inventory.LocalModel("tiny", "embedded", "x", Path("x"))]
    peaks = {name: peak for name, _, peak, _ in held}
    fit = lambda each, backend: MemoryFit("no" if each.name == "large" else "yes", peaks.get(each.name, 1.0))  # noqa: E731
    monkeypatch.setattr(inventory, "items", lambda backend: iter(found))
    monkeypatch.setattr(init_templates, "memory_fit", fit)


def test_next_steps_fetch_the_repository_of_the_backend_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = init_templates.InitChoices("qwen", "math")
    assert "sdpo models fetch qwen" in init_templates.next_steps(choices)
    monkeypatch.setattr(init_templates, "used_backend", lambda: "torch")
    assert "sdpo models fetch qwen --backend torch" in init_templates.next_steps(choices)


def test_largest_local_trainable_model_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    stocked(
        monkeypatch,
        ("small", "fetched", 1e9, ""),
        ("middle", "hub", 4e9, ""),
        ("large", "hub", 400e9, ""),
        ("ollama:packed", "ollama", 9e9, ""),
        ("away", "hub", 5e9, "sdpo models fetch away"),
        ("evil\x1b[2J", "hub", 6e9, ""),
    )
    named = [each.name for each in init_templates.suggestions()]
    assert named == ["middle", "small", "ollama:packed", "tiny", "away"]
    assert "sdpo models fetch away" in init_templates.suggestions()[-1].about


def test_embedded_model_is_the_default_without_local_models() -> None:
    named = [each.name for each in init_templates.suggestions()]
    assert named[0] == "tiny"
    assert set(named[1:]) <= {*models.ALIASES, *models.FETCHED}


def test_missing_model_comes_with_its_download_command(nowhere: Path) -> None:
    code, out, _ = sdpo("init", "mine", "--model", "qwen")
    assert code == 0
    lines = out.splitlines()
    assert lines.index("  sdpo models fetch qwen") < lines.index("  sdpo train -c config.yaml")
    assert yaml.safe_load(Path("mine/config.yaml").read_text())["model"] == {"name": "qwen"}


def test_model_folder_is_found_from_the_starter_folder(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = nowhere / "my: model #1"
    folder.mkdir()
    made(nowhere / "mine", monkeypatch, "--model", "my: model #1")
    assert resolve(Path("config.yaml")).config.model.name == str(folder)


@pytest.mark.parametrize(("flag", "word"), [("--model", "qwenn"), ("--task", "cooking")])
def test_unknown_choices_are_refused_in_one_line(flag: str, word: str, nowhere: Path) -> None:
    code, out, err = sdpo("init", "mine", flag, word)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert list(nowhere.iterdir()) == []


# ---- the questions


def scripted(monkeypatch: pytest.MonkeyPatch, *lines: str) -> list[str]:
    """A person who types these lines; what was asked comes back."""
    asked: list[str] = []
    typed = iter(lines)

    def prompt(text: str, default: str, **_: Any) -> str:
        asked.append(text)
        return next(typed) or default

    def confirm(text: str, default: bool, **_: Any) -> bool:
        asked.append("feedback")
        return {"": default, "y": True, "n": False}[next(typed)]

    monkeypatch.setattr(typer, "prompt", prompt)
    monkeypatch.setattr(typer, "confirm", confirm)
    return asked


@pytest.mark.parametrize(
    ("typed", "answers"),
    [
        (("", "", ""), ("tiny", "own", True)),
        (("1", "2", "n"), ("tiny", "code", False)),
        (("nonsense", "qwen:8b", "judge", "y"), ("qwen:8b", "judge", True)),
        (("owner/model", "9", "rubric", "n"), ("owner/model", "rubric", False)),
    ],
)
def test_questions_take_numbers_names_and_enter(
    monkeypatch: pytest.MonkeyPatch, typed: tuple[str, ...], answers: tuple[str, str, bool]
) -> None:
    asked = scripted(monkeypatch, *typed)
    assert init.ask_choices(None, None, None) == init_templates.InitChoices(*answers)
    assert len(asked) == len(typed)
    assert list(dict.fromkeys(asked)) == ["model", "task", "feedback"]


def test_choices_given_by_options_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scripted(monkeypatch) == []
    assert init.ask_choices("tiny", "math", False) == init_templates.InitChoices("tiny", "math", False)


def at_a_terminal(folder: Path, typed: bytes, *words: str) -> tuple[int, str]:
    """The command with a terminal on stdin and stderr, and what it printed there."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, typed)
        command = [sys.executable, "-m", "sdpo_cli.main", "init", str(folder), *words]
        done = subprocess.run(
            command,
            stdin=theirs,
            stderr=theirs,
            stdout=subprocess.PIPE,
            check=False,
            timeout=HANG_SECONDS,
            start_new_session=True,
        )
        return done.returncode, os.read(ours, 65_536).decode(errors="replace")
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_terminal_is_asked_and_its_answers_are_written(nowhere: Path) -> None:
    code, shown = at_a_terminal(nowhere / "mine", b"\n5\nn\n")
    assert code == 0, shown
    assert "What is your task?" in shown
    config = resolve(nowhere / "mine" / "config.yaml").config
    assert (config.model.name, config.task.name, config.teacher.feedback) == ("tiny", "rubric", False)


def test_end_of_input_at_a_question_leaves_nothing_behind(nowhere: Path) -> None:
    code, shown = at_a_terminal(nowhere / "mine", b"\n\x04")
    assert code == 130
    assert "interrupted" in shown
    assert list(nowhere.iterdir()) == []


def test_yes_at_a_terminal_asks_nothing(nowhere: Path) -> None:
    code, shown = at_a_terminal(nowhere / "mine", b"\n", "--yes")
    assert code == 0
    assert "task" not in shown
    assert Config.model_validate(yaml.safe_load((nowhere / "mine" / "config.yaml").read_text()))


def test_unknown_kind_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(ConfigError, match="Choose one of own, code"):
        init_templates.checked_task("nothing")
