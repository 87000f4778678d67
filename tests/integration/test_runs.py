"""Runs seen from outside: the table, the view from another terminal, and what damage does to them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
from sdpo_cli.main import main as run
from small_runs import settings, trained

from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.status import EventFollower, is_running, runs_in, state_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    cfg = settings(rollout={"group_size": 2, "max_tokens": 8}, train={"steps": 2, "eval_every": 0})
    trained(folder, cfg)
    RunFolder(folder).write_config(cfg)
    return folder


def test_the_table_tells_each_run_and_names_damage(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = made.parent / "other"
    other.mkdir()
    (other / "events.jsonl").write_bytes(b"\0\0\n")
    try:
        assert run(["runs", str(made.parent)]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert shown[1].split()[:4] == ["first", "stopped", "tiny", "tiny"]
        assert "2/2" in shown[1]
        assert shown[2].split()[:2] == ["other", "damaged"]
        assert run(["runs", str(made.parent), "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["runs"]
        assert [row["step"] for row in rows] == [2, 0]
    finally:
        (other / "events.jsonl").unlink()
        other.rmdir()


def test_a_run_is_running_as_long_as_its_lock_is_held(made: Path) -> None:
    assert not is_running(made)
    with RunFolder.open(made):
        assert is_running(made)
        assert state_of(made).state == "running"
    assert not is_running(made)


def test_a_lock_that_names_a_living_stranger_is_not_a_run(made: Path, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(str(os.getpid()))
    assert not is_running(tmp_path)
    with (tmp_path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_running(tmp_path)


def test_following_gives_each_event_once_however_the_file_grows(made: Path, tmp_path: Path) -> None:
    content = (made / "events.jsonl").read_bytes()
    whole = [json.loads(line) for line in content.splitlines()]
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"")
    follower, seen = EventFollower(file), []
    for start in range(0, len(content), 700):
        with file.open("ab") as stream:
            stream.write(content[start : start + 700])
        seen += list(follower.new())
    assert seen == whole
    file.write_bytes(content[: content.find(b"\n") + 1])  # cut by a resumed run
    assert list(follower.new()) == whole[:1]


def test_watching_survives_figures_that_are_none(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(made, damaged)
    with (damaged / "events.jsonl").open("a") as events:
        events.write('\0garbage\n[1]\n{"type": 1, "step": "x"}\n')
        events.write('{"type": "step", "step": 3, "loss": "x", "success/rate": [], "time": {}}\n')
        events.write('{"type": "eval", "step": 3, "score": "high", "low": null}\n')
    assert run(["watch", str(damaged), "--plain"]) == 0
    said = capsys.readouterr().err
    assert "step 3/3  success -  truncated -  loss -" in said
    assert "stopped at step" in said


def test_watching_a_finished_run_shows_its_steps_and_ends(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch", str(made), "--plain"]) == 0
    told = capsys.readouterr().err
    assert "step 2/2" in told
    assert "held-out at step 2" in told


def test_where_there_is_no_run_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["runs", str(tmp_path)], ["watch", str(tmp_path)]):
        assert run(words) == 2
        assert "no runs here" in capsys.readouterr().err
    assert runs_in.__doc__
