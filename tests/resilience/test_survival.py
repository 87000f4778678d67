"""A run of its own process survives kills, signals, a full disk and a twin (promises 1 to 4)."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from child_processes import sdpo_child
from small_runs import assert_same, events, finish, last_state, settings, start, trained
from waiting import wait_until

from sdpo_mlx.core import storage
from sdpo_mlx.core.errors import StorageError
from sdpo_mlx.core.seeding import rng
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import RunFolder

# Few short rollouts: what these tests are about is the run around them.
FEW = {"rollout": {"problems_per_step": 1, "group_size": 2, "max_tokens": 4}, "eval": {"problems": 1}}
SETTINGS = settings(**FEW)
SAVE_EVERY = SETTINGS.train.save_every
# How often each place is passed between two checkpoints, roughly: a kill is aimed at one of these calls.
AIMS = {
    "generation": 6,
    "gradient": 2,
    "apply": 2,
    "teacher": 2,
    "event": 6,
    "adapter": 1,
    "rollouts": 2,
    "fill": 2,
    "put": 7,
    "swap": 2,
    "prune": 2,
    "fsync": 30,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert finish(start(folder, SETTINGS)) == (0, "")
    return folder


def killed(folder: Path, draw: Any, aimed: bool) -> bool:
    """Start or resume, and SIGKILL at a random moment; False where the run was over first."""
    if aimed:
        place = str(draw.choice(list(AIMS)))
        process = start(
            folder,
            SETTINGS,
            {"place": place, "count": int(draw.integers(AIMS[place])) + 1, "signal": int(signal.SIGKILL)},
        )
    else:
        process = start(folder, SETTINGS)
        process.wait_for_line("ready")
        time.sleep(float(draw.uniform(0.0, 0.6)))
        process.kill()
    code, said = finish(process)
    assert code in (0, -signal.SIGKILL), said
    return code != 0


def assert_nothing_lost(folder: Path, known: dict[int, dict[str, bytes]]) -> None:
    """What loads verifies without a warning, is the one state of its step, and is young enough."""
    found = checkpoint.load(folder / "checkpoints")
    done = max((e["step"] for e in read_events(folder / "events.jsonl") if e["type"] == "step"), default=0)
    assert done - (found.step if found else 0) <= SAVE_EVERY
    if found is not None:
        assert found.warnings == ()
        state = last_state(folder)
        assert known.setdefault(found.step, state) == state


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_runs_end_as_if_nothing_had_happened(kills: int, undisturbed: Path, tmp_path: Path) -> None:
    draw, done, runs = rng("kills", kills), 0, 0
    known: dict[int, dict[str, bytes]] = {}
    while done < kills:
        folder, runs = tmp_path / f"run-{runs}", runs + 1
        for _ in range(min(7, kills - done)):
            if not killed(folder, draw, aimed=done % 2 == 0):
                break
            done += 1
            assert_nothing_lost(folder, known)
        assert finish(start(folder, SETTINGS)) == (0, "")
        assert_same(folder, undisturbed)
    assert done == kills


INT, TERM = signal.SIGINT, signal.SIGTERM
SIGNALS = [("generation", 8, INT), ("gradient", 3, TERM), ("score", 3, INT), ("put", 3, TERM)]
MORE = [("generation", 9, TERM), ("gradient", 2, INT), ("apply", 4, INT), ("score", 2, TERM), ("fill", 1, INT)]
MORE += [("teacher", 2, INT), ("fsync", 14, INT), ("adapter", 1, TERM), ("rollouts", 4, INT), ("prune", 1, INT)]


@pytest.mark.parametrize(
    ("place", "count", "number"), [*SIGNALS, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE)]
)
def test_a_signal_saves_and_leaves_and_resuming_is_exact(
    place: str, count: int, number: signal.Signals, undisturbed: Path, tmp_path: Path
) -> None:
    hook = {"place": place, "count": count, "signal": int(number)}
    process = start(tmp_path / "run", SETTINGS, hook)
    assert finish(process) == (128 + number, "")
    found = checkpoint.load(tmp_path / "run" / "checkpoints")
    steps = [event["step"] for event in events(tmp_path / "run", "step")]
    assert found is not None
    assert found.step == max(steps, default=0)  # not one whole step is lost
    assert finish(start(tmp_path / "run", SETTINGS)) == (0, "")
    assert_same(tmp_path / "run", undisturbed)


def test_a_score_interrupted_then_killed_is_not_told_twice(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert finish(start(folder, SETTINGS, {"place": "score", "count": 2, "signal": 2}))[0] == 130
    assert finish(start(folder, SETTINGS, {"place": "gradient", "count": 1, "signal": int(signal.SIGKILL)}))[0] == -9
    assert finish(start(folder, SETTINGS)) == (0, "")
    assert_same(folder, undisturbed)


@pytest.mark.parametrize("place", ["generation", "gradient", "put"])
def test_a_second_signal_leaves_at_once(place: str, tmp_path: Path) -> None:
    hook = {"place": place, "count": 2, "signal": int(signal.SIGINT), "times": 2}
    assert finish(start(tmp_path / "run", SETTINGS, hook)) == (130, "")
    assert checkpoint.load(tmp_path / "run" / "checkpoints") is None  # it did not wait for a save


def test_a_second_process_is_turned_away(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run"):
        code, said = finish(start(tmp_path / "run", SETTINGS))
    assert code == StorageError.exit_code == 5
    assert said.count("\n") == 1
    assert f"pid {os.getpid()}" in said
    assert not (tmp_path / "run" / "events.jsonl").exists()


def test_the_command_saves_on_a_signal_and_goes_on(tmp_path: Path) -> None:
    sets = ["rollout.problems_per_step=2", "train.save_every=2", "eval.problems=2", "eval.samples=1"]
    command = ["train", "--model", "tiny", "--task", "tiny", "--plain"]
    command += ["--steps", "6", "--group-size", "2", "--max-tokens", "8", "--out", str(tmp_path / "run")]
    command += [f"--set={each}" for each in sets]
    process = sdpo_child(command, tmp_path)
    wait_until(lambda: events(tmp_path / "run", "step") or process.returncode is not None)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    found = checkpoint.load(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found.step == max(event["step"] for event in events(tmp_path / "run", "step"))
    resumed = sdpo_child(command, tmp_path)
    _, said = resumed.communicate()
    assert resumed.returncode == 0, said
    assert [e["step"] for e in events(tmp_path / "run", "step")] == [1, 2, 3, 4, 5, 6]


SLOW_ROOMS = [
    pytest.param(n, marks=pytest.mark.slow)
    for n in (2, 3, *range(5, 9), *range(10, 14), *range(15, 19), *range(20, 24))
]


class FullDisk:
    """`os.write` that finds no space from its n-th call on."""

    def __init__(self, room: int) -> None:
        self.room, self.calls, self._write = room, 0, os.write

    def __call__(self, descriptor: int, content: bytes) -> int:
        self.calls += 1
        if self.calls > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(descriptor, content)


SHORT = settings(**FEW, train={"steps": 3, "save_every": 1, "eval_every": 0})


@pytest.fixture(scope="module")
def undisturbed_short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with enough space."""
    folder = tmp_path_factory.mktemp("undisturbed") / "short"
    trained(folder, SHORT)
    return folder


@pytest.mark.parametrize("room", [0, 1, 4, 9, 14, 19, *SLOW_ROOMS])
def test_a_full_disk_ends_with_one_line_and_the_last_good_state(
    room: int, undisturbed_short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(room)
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "write", disk)
        with pytest.raises(StorageError, match="No space left on device") as caught:
            trained(tmp_path / "run", SHORT)
    assert caught.value.exit_code == 5
    assert "\n" not in caught.value.line()
    saved = [int(p.name[-6:]) for p in (tmp_path / "run" / "checkpoints").glob("step-*")]
    found = checkpoint.load(tmp_path / "run" / "checkpoints")
    assert (found.step if found else None) == (max(saved) if saved else None)
    assert found is None or found.warnings == ()
    trained(tmp_path / "run", SHORT)
    assert_same(tmp_path / "run", undisturbed_short)
