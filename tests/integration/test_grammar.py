"""Training from the adapter of an earlier run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sdpo_cli import main

from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import RunFolder

SMALL = ("--steps", "1", "--group-size", "2", "--set", "rollout.problems_per_step=2", "--set", "eval.problems=4")
QUICK = (*SMALL, "--set", "eval.samples=1", "--max-tokens", "8", "--plain", "--json")


def test_run_as_target_starts_a_run_from_its_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    sets = ("--set", "train.learning_rate=0.01")
    assert main.main(["train", "--model", "tiny", "--task", "tiny", *QUICK, *sets, "--out", str(first)]) == 0
    capsys.readouterr()
    # Without learning, the start is what the new run keeps.
    assert main.main(["train", str(first), "--learning-rate", "1e-12", "--out", str(second), "--plain", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["run"] == str(second)
    start, kept = (RunFolder(run).load_adapter()[0] for run in (first, second))
    assert all(abs(start[name] - kept[name]).max() < 1e-6 for name in start)
    settings = next(read_events(second / "events.jsonl"))["config"]
    assert settings["model"]["adapter"]["start"] == str(first.resolve())
    assert settings["rollout"]["max_tokens"] == 8

    assert main.main(["train", "--run", str(first), "--out", str(first)]) == 2
    assert "cannot start from its own adapter" in capsys.readouterr().err
