"""A run that an error ends keeps its last whole step, and goes on to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import assert_same, settings, trained

from sdpo_mlx.rl.components import Components
from sdpo_mlx.runs import checkpoint

CFG = settings(
    rollout={"problems_per_step": 2, "group_size": 2, "max_tokens": 8},
    train={"steps": 4, "save_every": 3, "eval_every": 2},
    eval={"problems": 1},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    trained(folder, CFG)
    return folder


def fails(name: str, call: int, *, after: bool = False) -> Callable[[Components], None]:
    """Make a policy's method raise at one call, before or after its work."""

    def change(components: Components) -> None:
        real, calls = getattr(components.policy, name), list[int]()

        def method(*given: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == call and not after:
                raise RuntimeError("injected")
            found = real(*given, **options)
            if len(calls) == call:
                raise RuntimeError("injected")
            return found

        setattr(components.policy, name, method)

    return change


# Calls of `generate`: evaluation, step 1, step 2, evaluation, step 3. Learning calls the others once a step.
BROKEN = {
    "sampling": (fails("generate", 3), 1),
    "evaluation": (fails("generate", 4), 2),
    "learning": (fails("gradient", 2), 1),
    "after the optimizer": (fails("optimizer_step", 2, after=True), None),
    "figures of the step": (fails("memory", 2), None),
    "first step": (fails("gradient", 1), None),
}


SLOW = ("figures of the step", "first step")


@pytest.mark.parametrize(
    "where", [name if name not in SLOW else pytest.param(name, marks=pytest.mark.slow) for name in BROKEN]
)
def test_run_that_an_error_ends_keeps_its_last_whole_step(where: str, whole: Path, tmp_path: Path) -> None:
    change, kept = BROKEN[where]
    with pytest.raises(RuntimeError, match="injected"):
        trained(tmp_path / "run", CFG, change=change)
    # A step that was broken off after its update is not saved as if it were whole.
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1:] == ([] if kept is None else [kept])
    trained(tmp_path / "run", CFG)
    assert_same(tmp_path / "run", whole)


def test_error_of_saving_does_not_hide_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    def broken(components: Components) -> None:
        fails("generate", 3)(components)
        monkeypatch.setattr(checkpoint, "save", full)

    with pytest.raises(RuntimeError, match="injected"):
        trained(tmp_path / "run", CFG, change=broken)


def test_what_runs_at_once_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="injected"):
        trained(tmp_path / "run", CFG, change=fails("generate", 3))
    less = {"micro_batch_tokens": 64, "grad_checkpoint": True}
    state = trained(
        tmp_path / "run",
        settings(
            rollout={**CFG.rollout.model_dump(), "concurrency": 1},
            train={**CFG.train.model_dump(), **less, "steps": 2},
            eval={"problems": 1},
        ),
    )
    assert state is not None
    assert state.step == 2
