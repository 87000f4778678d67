"""A process that a GPU ended is recognised by the next one (promise 25); a kill stands in for the abort."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_policies import make_policy
from small_runs import events, finish, last_state, settings, start

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.core.errors import CrashedError
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.phase_marker import NAME, PhaseMarker
from sdpo_mlx.training.recovery import Recovery

SETTINGS = settings(
    rollout={"problems_per_step": 1, "group_size": 4, "max_tokens": 6},
    train={"steps": 3, "save_every": 1, "eval_every": 0},
    eval={"problems": 1},
    log={"candidates": 0, "teacher_answers": 0, "samples": 0},
)
KILLED = -signal.SIGKILL
ENDED = {"aborts": True}


def kill(place: str, count: int) -> dict[str, Any]:
    return {"place": place, "count": count, "signal": int(signal.SIGKILL), **ENDED}


def marker(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / NAME).read_text())
    return found


def warnings(folder: Path) -> list[str]:
    return [event["message"] for event in events(folder, "warning") if "at once" in event["message"]]


@pytest.mark.parametrize("place", ["gradient", pytest.param("apply", marks=pytest.mark.slow)])
def test_killed_run_says_what_ended_it_and_goes_on_with_half(place: str, tmp_path: Path) -> None:
    folder, phase = tmp_path / "run", "learn"
    assert finish(start(folder, SETTINGS, kill(place, 1)))[0] == KILLED
    first = marker(folder)
    assert (first["phase"], first["step"], first["limits"]) == (phase, 0, {})
    # The second crash is in another step: half as much once more.
    assert finish(start(folder, SETTINGS, kill(place, 2)))[0] == KILLED
    second = marker(folder)
    half = first["size"] // 2
    assert (second["phase"], second["step"], second["limits"]) == (phase, 1, {phase: half})
    assert second["size"] == half
    assert finish(start(folder, SETTINGS, ENDED)) == (0, "")
    assert not (folder / NAME).exists()
    assert len(warnings(folder)) == 2
    assert "while learning" in warnings(folder)[0]
    assert f"at most {half} tokens at once, it had {first['size']}" in warnings(folder)[0]
    assert f"at most {half // 2} tokens" in warnings(folder)[1]
    assert [event["step"] for event in events(folder, "step")] == [1, 2, 3]
    loaded = checkpoint.load(folder / "checkpoints")
    assert loaded is not None
    assert (loaded.step, loaded.warnings) == (3, ())
    assert all(np.isfinite(np.frombuffer(a, np.float32)).all() for n, a in last_state(folder).items() if "lora" in n)


def test_second_crash_at_the_same_place_stops_with_advice_and_a_third_start_tries_again(tmp_path: Path) -> None:
    folder, crash = tmp_path / "run", kill("generation", 3)  # after the evaluation's rollout and its reference's
    assert [finish(start(folder, SETTINGS, crash))[0] for _ in range(2)] == [KILLED, KILLED]
    assert marker(folder)["phase"] == "generate"
    code, said = finish(start(folder, SETTINGS, ENDED))
    assert code == CrashedError.exit_code == 8
    assert said.count("\n") == 1
    assert "ended again while sampling" in said
    assert "memory.evaluation_gflop" in said
    assert finish(start(folder, SETTINGS, ENDED)) == (0, "")
    assert warnings(folder) == ["since an earlier crash this run has at most 2 rollouts at once"]
    assert not (folder / NAME).exists()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    """A locked run folder."""
    with RunFolder.open(tmp_path / "run") as opened:
        yield opened


class FakePolicy:
    """A policy that only has passes."""

    def __init__(self, *, aborts: bool = True) -> None:
        self.info, self.sizes = SimpleNamespace(aborts=aborts), {"generate": 64, "learn": 8_192}

    def pass_sizes(self, _sampling: Any) -> dict[str, int]:
        return dict(self.sizes)

    def limit_pass(self, phase: str, size: int) -> None:
        self.sizes[phase] = min(self.sizes[phase], size)


def recovery(folder: RunFolder, policy: Any) -> Recovery:
    return Recovery(policy, folder, SamplingParams(8, 1.0, 1.0, frozenset()))


def crash(folder: RunFolder, phase: str, step: int, most: int | None = None) -> None:
    """Leave what a process does that ends inside a phase."""
    with recovery(folder, FakePolicy()).phase(phase, step, most):
        left = (folder.path / NAME).read_bytes()
    (folder.path / NAME).write_bytes(left)


def test_reduced_sizes_outlive_an_interruption_and_end_with_the_run(folder: RunFolder) -> None:
    crash(folder, "learn", 5)
    policy = FakePolicy()
    run = recovery(folder, policy)
    assert "4096 tokens" in run.resume()
    with pytest.raises(KeyboardInterrupt), run.phase("learn", 5):
        raise KeyboardInterrupt
    later = FakePolicy()
    after = recovery(folder, later)
    assert after.resume() == "since an earlier crash this run has at most 4096 tokens at once"
    assert later.sizes == {"generate": 64, "learn": 4_096}
    after.finish()
    assert not (folder.path / NAME).exists()


def test_phase_that_ends_by_itself_or_by_an_error_is_no_crash(folder: RunFolder) -> None:
    run = recovery(folder, FakePolicy())
    assert run.resume() == ""
    with run.phase("generate", 0):
        assert marker(folder.path)["phase"] == "generate"
    with pytest.raises(ValueError, match="a bug"), run.phase("learn", 0):
        raise ValueError("a bug")
    assert not (folder.path / NAME).exists()


def test_second_ctrl_c_is_no_crash(folder: RunFolder) -> None:
    run, pressed = recovery(folder, FakePolicy()), list[bool]()
    interrupted = run.unless(lambda: bool(pressed))
    with run.phase("generate", 0):
        assert not interrupted()
        assert (folder.path / NAME).exists()
        pressed.append(True)
        assert interrupted()
        assert not (folder.path / NAME).exists()


def test_device_that_raises_has_no_marker_and_keeps_its_sizes(folder: RunFolder) -> None:
    crash(folder, "learn", 5)
    policy = FakePolicy(aborts=False)
    run = recovery(folder, policy)
    assert run.resume() == ""
    assert policy.sizes["learn"] == 8_192
    with run.phase("learn", 5):
        assert not (folder.path / NAME).exists()


def test_half_is_taken_of_what_there_was_to_do(folder: RunFolder) -> None:
    crash(folder, "generate", 0, most=8)
    policy = FakePolicy()
    recovery(folder, policy).resume()
    assert policy.sizes["generate"] == 4


@pytest.mark.parametrize("content", ["", "[]", "{", '{"phase": 3}', '{"phase": "learn"}', '{"limits": 4}', "null"])
def test_damaged_marker_is_none(content: str, folder: RunFolder) -> None:
    (folder.path / NAME).write_text(content)
    assert PhaseMarker(folder.path).read() is None


def test_limited_rollouts_are_the_same_ones() -> None:
    policy, ids = make_policy(), [np.arange(1, size, dtype=np.int32) for size in (5, 9)]
    sampling, seeds = SamplingParams(6, 1.0, 1.0, frozenset()), [[1, 2, 3], [4]]
    before = {(at, n): found.ids_T.tolist() for at, n, found in policy.generate(ids, sampling, seeds)}
    policy.limit_pass("generate", 2)
    assert policy.pass_sizes(sampling)["generate"] == 2
    after = {(at, n): found.ids_T.tolist() for at, n, found in policy.generate(ids, sampling, seeds)}
    assert after == before
    assert set(after) == {(0, 0), (0, 1), (0, 2), (1, 0)}
