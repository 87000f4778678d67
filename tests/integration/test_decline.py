"""What a run does if its held-out score declines: warn, stop, roll back; and a resumed run does the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import Watcher, assert_same, events, settings, trained

from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import StorageError
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.training import health
from sdpo_mlx.training.history import History
from sdpo_mlx.training.session import MOST_ROLLBACKS, TrainState

ROLLOUT, EVAL = (
    {"problems_per_step": 2, "group_size": 2, "max_tokens": 8},
    {"problems": 1, "samples": 1, "max_tokens": 4},
)
TRAIN = {"steps": 3, "eval_every": 1, "save_every": 1, "learning_rate": 5e-3, "probe": False}


def config(action: str, backend: str = "mlx", **train: Any) -> Config:
    model = {"name": "tiny", "backend": backend, "device": "cpu", "adapter": {"rank": 4}}
    return settings(model=model, rollout=ROLLOUT, eval=EVAL, train={**TRAIN, "on_decline": action, **train})


@pytest.fixture(autouse=True)
def falls(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """The steps whose evaluation counts as a fall, by default the second; nothing else is a new best."""
    steps = {2}

    def held_out(history: History) -> health.Finding | None:
        assert history.latest is not None
        return health.Finding("it fell", {"now": 0.0}) if history.latest["step"] in steps else None

    monkeypatch.setattr(health, "held_out", held_out)
    rules = [rule if rule.name != "held_out" else health.Rule("held_out", "eval", held_out) for rule in health.RULES]
    monkeypatch.setattr(health, "RULES", [rule for rule in rules if rule.name == "held_out"])
    return steps


def finished(folder: Path, cfg: Config) -> TrainState:
    state = trained(folder, cfg)
    assert state is not None
    return state


def declines(folder: Path) -> list[tuple[int, str]]:
    return [(event["step"], event["action"]) for event in events(folder, "decline")]


def test_fall_can_be_a_warning_that_changes_no_byte(tmp_path: Path, falls: set[int]) -> None:
    assert Config().train.on_decline == "rollback"
    finished(tmp_path / "fell", config("warn"))
    falls.clear()
    finished(tmp_path / "healthy", config("warn"))
    adapters = [(tmp_path / name / "adapters.safetensors").read_bytes() for name in ("fell", "healthy")]
    assert adapters[0] == adapters[1]
    assert events(tmp_path / "fell") == events(tmp_path / "healthy")
    assert [event["rule"] for event in events(tmp_path / "fell", "warning") if "rule" in event] == ["held_out"]
    assert declines(tmp_path / "fell") == []


def test_stop_ends_the_run_and_a_resumed_one_stays_ended(tmp_path: Path) -> None:
    state = finished(tmp_path / "run", config("stop"))
    assert (state.step, state.declined, declines(tmp_path / "run")) == (2, True, [(2, "stop")])
    assert "adapter of step 0, the best" in events(tmp_path / "run", "decline")[0]["message"]
    assert finished(tmp_path / "run", config("stop")) == state
    assert declines(tmp_path / "run") == [(2, "stop")]
    # Another choice may go on.
    assert finished(tmp_path / "run", config("warn")).step == TRAIN["steps"]


@pytest.mark.parametrize("backend", ["mlx", pytest.param("torch", marks=pytest.mark.slow)])
def test_rollback_restores_the_best_step_and_halves_the_rate(tmp_path: Path, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    state = finished(tmp_path / "run", config("rollback", backend, steps=2))
    best, last = (checkpoint.load_step(tmp_path / "run" / "checkpoints", step) for step in (0, 2))
    assert (state.best_step, state.rollbacks, state.declined) == (0, 1, False)
    # Every step sets the optimizer's learning rate itself.
    names = [(part, name) for part in best.state for name in best.state[part] if name != "learning_rate"]
    assert len({part for part, _ in names}) == 3
    assert all(np.array_equal(best.state[part][name], last.state[part][name]) for part, name in names)
    finished(tmp_path / "run", config("rollback", backend, steps=3))
    rates = [event["lr"] for event in events(tmp_path / "run", "step")]
    assert rates == [5e-3, 5e-3, 2.5e-3]
    assert events(tmp_path / "run", "decline")[0]["learning_rate"] == 2.5e-3


def test_after_two_rollbacks_a_fall_ends_the_run(tmp_path: Path, falls: set[int]) -> None:
    falls.update(range(1, 9))
    state = finished(tmp_path / "run", config("rollback", steps=8))
    assert declines(tmp_path / "run") == [(1, "rollback"), (2, "rollback"), (3, "stop")]
    assert (state.step, state.rollbacks) == (3, MOST_ROLLBACKS)


@pytest.mark.parametrize("after", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_an_interrupted_run_rolls_back_as_an_uninterrupted_one(tmp_path: Path, after: int) -> None:
    """Interrupted before, in and after the step with the fall."""
    cfg = config("rollback", save_every=9)
    finished(tmp_path / "whole", cfg)
    assert trained(tmp_path / "broken", cfg, Watcher(after=after)) is None
    finished(tmp_path / "broken", cfg)
    assert_same(tmp_path / "whole", tmp_path / "broken")
    assert declines(tmp_path / "whole") == declines(tmp_path / "broken") == [(2, "rollback")]
    kinds = [[e["rule"] for e in events(tmp_path / name, "warning") if "rule" in e] for name in ("whole", "broken")]
    assert kinds == [["held_out"], ["held_out"]]


def test_a_best_checkpoint_that_is_lost_is_named(tmp_path: Path) -> None:
    trained(tmp_path / "run", config("warn", steps=1))
    with pytest.raises(StorageError, match="step 0 cannot be read"):
        trained(tmp_path / "run", config("rollback"))
    assert RunFolder(tmp_path / "run").load_adapter()
