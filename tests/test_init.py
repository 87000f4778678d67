"""`sdpo init` writes a folder that works as it is, and never over anything."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from sdpo_cli import main as cli


def test_the_starter_folder_passes_its_own_check_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["init", str(tmp_path / "mine")]) == 0
    monkeypatch.chdir(tmp_path / "mine")
    assert cli.run(["tasks", "check", "./my_task.py", "--data", "problems.jsonl"]) == 0
    assert "nothing odd found" in capsys.readouterr().out
    assert cli.run(["data", "check", "problems.jsonl", "--task", "./my_task.py"]) == 0
    small = ["--set", "eval.problems=1", "--set", "eval.samples=1", "--set", "rollout.problems_per_step=2"]
    assert cli.run(["train", "-c", "config.yaml", "--steps", "1", "--out", "run", "--plain", *small]) == 0
    assert (tmp_path / "mine" / "run" / "adapters.safetensors").is_file()


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    assert cli.run(["init", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_the_manifest_pins_the_rows_and_the_file_that_graded_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.run(["init", str(tmp_path)]) == 0
    monkeypatch.chdir(tmp_path)
    assert cli.run(["train", "-c", "config.yaml", "--steps", "0", "--out", "run", "--set", "eval.problems=1"]) == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    rows = hashlib.sha256((tmp_path / "problems.jsonl").read_bytes()).hexdigest()
    assert manifest["data"] == {"source": "./problems.jsonl", "sha256": rows}
    assert manifest["task_sha256"] == hashlib.sha256((tmp_path / "my_task.py").read_bytes()).hexdigest()
