"""Objective `auto` in a run: its share of distillation follows the measured agreement, and survives a resume."""

from pathlib import Path
from typing import Any

import pytest
from requirements import needs_torch
from small_runs import Watcher, events, remains, settings, trained, with_value

from sdpo_mlx.config import Config
from sdpo_mlx.rl import components
from sdpo_mlx.rl.agreement import KINDS

AT_ONCE = {"problems_per_step": 3, "group_size": 4, "max_tokens": 24}
STEPS = {"steps": 2, "eval_every": 0, "save_every": 1, "learning_rate": 5e-3, "probe": False}


def config(kind: str) -> Config:
    return settings(
        objective={"support": "full", "kind": kind}, rollout=AT_ONCE, train=STEPS, eval={"problems": 1, "samples": 1}
    )


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """What each step measures, for both kinds of context, instead of the self-teacher's credit."""
    found: list[list[float]] = []
    monkeypatch.setattr(components, "measure", lambda *_: dict.fromkeys(KINDS, found.pop(0)))
    return found


def learned(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in event.items() if not name.startswith(("agreement/", "share/"))}
        for event in events(folder, "step")
    ]


@pytest.mark.parametrize(("measured", "kind"), [pytest.param(1.0, "sdpo", marks=pytest.mark.slow), (-1.0, "grpo")])
def test_run_learns_as_the_kind_that_its_measurement_asks_for(
    measured: float, kind: str, tmp_path: Path, measures: list[list[float]]
) -> None:
    measures += [[measured]] * STEPS["steps"]
    trained(tmp_path / "auto", config("auto"))
    trained(tmp_path / kind, config(kind))
    assert learned(tmp_path / "auto") == learned(tmp_path / kind)
    assert any(event["loss"] for event in learned(tmp_path / kind))


def test_resumed_run_keeps_what_was_measured(tmp_path: Path, measures: list[list[float]]) -> None:
    rows = [[0.5, 1.0, 0.5, 1.0], [0.25]]
    measures += rows
    trained(tmp_path / "whole", config("auto"))
    measures += rows
    assert trained(tmp_path / "cut", config("auto"), Watcher("step", 1)) is None
    trained(tmp_path / "cut", config("auto"))
    assert remains(tmp_path / "cut") == remains(tmp_path / "whole")
    shares = [event["share/feedback"] for event in events(tmp_path / "whole", "step")]
    assert shares == pytest.approx([0.75 - 0.144338, 0.65 - 0.15], abs=1e-5)


@pytest.mark.parametrize("backend", ["mlx", pytest.param("torch", marks=[needs_torch, pytest.mark.slow])])
def test_embedded_self_teacher_is_trusted(backend: str, tmp_path: Path) -> None:
    trained(tmp_path / "auto", with_value(config("auto"), "model.backend", backend))
    steps = events(tmp_path / "auto", "step")
    assert {event[f"share/{kind}"] for event in steps for kind in KINDS} == {1.0}
    assert steps[-1]["agreement/feedback"] == 1.0
