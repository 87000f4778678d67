"""Whoever gives up containment is told once, and it stays written where the results are."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from sdpo_cli import main
from small_runs import settings

from sdpo_mlx.config import Config
from sdpo_mlx.rl.components import UNCONFINED, build_components
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.tasks import registry
from sdpo_mlx.tasks.registry import OpenedTask
from sdpo_mlx.tasks.tiny.task import TinyTask
from sdpo_mlx.trainer import fit

RUN = settings(
    train={"steps": 1, "eval_every": 0},
    rollout={"problems_per_step": 1, "group_size": 2, "max_tokens": 8},
    eval={"problems": 1, "samples": 1},
)


@pytest.fixture(params=["unconfined", "bubblewrap", "none"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The small task, as if it ran programs in a sandbox of this kind."""

    def open_tiny(cfg: Config, variant: str) -> OpenedTask:
        return OpenedTask(TinyTask(variant, cfg.task.feedback), str(request.param))

    monkeypatch.setitem(registry.TASKS, "tiny", replace(registry.TASKS["tiny"], open=open_tiny))
    monkeypatch.chdir(tmp_path)
    return str(request.param)


def test_a_run_is_stamped_with_its_sandbox(kind: str, tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run") as folder:
        fit(build_components(RUN), folder, lambda *_: None)
    manifest = json.loads((tmp_path / "run/manifest.json").read_text(encoding="utf-8"))
    warnings = [event["message"] for event in read_events(folder.events) if event["type"] == "warning"]
    card = (tmp_path / "run/README.md").read_text(encoding="utf-8")
    assert manifest["sandbox"] == kind
    assert warnings.count(UNCONFINED) == (kind == "unconfined")
    assert ("ran unconfined" in card) == (kind == "unconfined")
    assert ("in a sandbox (bubblewrap)" in card) == (kind == "bubblewrap")


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "tiny", "--problems", "1", "--group-size", "1", "--plain", "--json"],
        ["rollout", "--json"],
        ["train", "--out", "run", "--set", "train.steps=1", "--set", "eval.problems=1", "--plain", "--json"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("kind", ["unconfined", "bubblewrap"], indirect=True)  # nothing is said of "none" either
def test_a_command_warns_once_and_keeps_stdout_clean(kind: str, words: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    small = ["--set", "rollout.problems_per_step=1", "--set", "rollout.group_size=2", "--set", "rollout.max_tokens=8"]
    with redirect_stdout(out), redirect_stderr(err):
        assert main.main([*words, *small]) == 0
    assert err.getvalue().count("run unconfined") == (kind == "unconfined")
    assert "unconfined" not in out.getvalue()
