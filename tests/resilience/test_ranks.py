"""Several ranks as real processes: the same gradient, the same steps, the same run as one process, and no hang."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import SUPPORT
from ranks import BACKENDS, environments, launcher, start_ranks
from requirements import needs_torch
from small_runs import ONE_THREAD

import sdpo_mlx
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import RunFolder

DRIVER = SUPPORT / "rank_process.py"
TRAIN = ["train", "--model", "tiny", "--task", "tiny", "--plain", "--out", "run", "--set", "eval.problems=2"]
TRAIN += ["--set", "eval.samples=1", "--set", "rollout.problems_per_step=4", "--set", "train.save_every=50"]
SDPO = ["-c", "from sdpo_cli.main import main; main()"]


# Both engines answer and learn like one in the quick suite; what the loop does around them is the same for either.
TORCH_SLOW = ["mlx", pytest.param("torch", marks=[needs_torch, pytest.mark.slow])]


def kept(out: Path) -> dict[str, Any]:
    with np.load(out, allow_pickle=False) as found:
        return dict(found)


def gap(ours: dict[str, Any], theirs: dict[str, Any], prefix: str) -> float:
    """Relative distance of all arrays of a kind."""
    names = [name for name in ours if name.startswith(prefix)]
    assert names
    difference = sum(float(((ours[n].astype(float) - theirs[n]) ** 2).sum()) for n in names)
    return float(np.sqrt(difference / sum(float((theirs[n].astype(float) ** 2).sum()) for n in names)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_ranks_answer_and_learn_like_one(backend: str, tmp_path: Path) -> None:
    environment = {**ONE_THREAD, "PYTHONPATH": str(DRIVER.parent)}
    alone, both = tmp_path / "one.npz", tmp_path / "two.npz"
    for head, out in (([sys.executable], alone), (launcher(backend, 2), both)):
        done = subprocess.run(
            [*head, str(DRIVER), backend, str(out)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert out.exists(), done.stderr
    one, two = kept(alone), kept(both)
    assert (int(one["ranks"]), int(two["ranks"])) == (1, 2)
    assert gap(two, one, "gradient/") < 1e-5
    assert gap(two, one, "student/") < 1e-4
    assert gap(two, one, "teacher/") < 1e-4
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-5)
    np.testing.assert_allclose(two["divergence"], one["divergence"], atol=1e-4)
    assert not two["warnings"].size  # the ranks' states were compared, and were equal
    for name in (n for n in one if n.startswith("answer/")):
        np.testing.assert_array_equal(two[name], one[name])


def steps_done(folder: Path) -> int:
    try:
        return sum(event["type"] == "step" for event in read_events(folder / "run" / "events.jsonl"))
    except FileNotFoundError:
        return 0


def trained_until(ranks: list[subprocess.Popen[str]], folder: Path, steps: int) -> None:
    """Wait until so many steps are done; fails where a rank ended before."""
    until = time.monotonic() + 120
    while steps_done(folder) < steps:
        assert all(rank.poll() is None for rank in ranks), ranks[0].communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("backend", "how"),
    [
        ("mlx", "killed"),
        pytest.param("torch", "killed", marks=[needs_torch, pytest.mark.slow]),
        # Half a minute of silence each; the heartbeat's own test (test_world.py) is quick.
        pytest.param("mlx", "frozen", marks=pytest.mark.slow),
        pytest.param("torch", "frozen", marks=[needs_torch, pytest.mark.slow]),
    ],
)
def test_lost_rank_ends_the_run_with_its_state_saved(backend: str, how: str, tmp_path: Path) -> None:
    ranks = start_ranks(backend, 2, tmp_path, [*SDPO, *TRAIN, "--steps", "500", "--backend", backend])
    try:
        trained_until(ranks, tmp_path, 2)
        ranks[1].send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        _, said = ranks[0].communicate(timeout=60)
    finally:
        for rank in ranks:
            rank.kill()
    assert ranks[0].returncode == 7, said
    assert "rank 1 was lost" in said
    assert "Traceback" not in said
    done = steps_done(tmp_path)
    assert max(checkpoint.steps(RunFolder(tmp_path / "run").checkpoints)) == done
    again = subprocess.run(
        [sys.executable, *SDPO, *TRAIN, "--steps", str(done + 1), "--backend", backend],
        env=ONE_THREAD,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "not bit for bit" in again.stderr
    assert steps_done(tmp_path) == done + 1


@pytest.mark.parametrize("backend", TORCH_SLOW)
def test_interrupt_of_any_rank_saves_and_ends_all(backend: str, tmp_path: Path) -> None:
    ranks = start_ranks(backend, 2, tmp_path, [*SDPO, *TRAIN, "--steps", "500", "--backend", backend])
    try:
        trained_until(ranks, tmp_path, 1)
        ranks[1].send_signal(signal.SIGINT)
        said = [rank.communicate(timeout=60)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [130, 0], said
    assert f"saved at step {steps_done(tmp_path)}" in said[0]


@pytest.mark.parametrize("backend", TORCH_SLOW)
def test_run_of_one_rank_goes_on_on_two(backend: str, tmp_path: Path) -> None:
    words = [*SDPO, *TRAIN, "--backend", backend, "--steps"]
    alone = {"env": ONE_THREAD, "cwd": tmp_path, "capture_output": True, "timeout": 120}
    subprocess.run([sys.executable, *words, "1"], check=True, **alone)
    ranks = start_ranks(backend, 2, tmp_path, [*words, "2"])
    said = [rank.communicate(timeout=100)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "not bit for bit" in said[0]
    assert steps_done(tmp_path) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_mistake_of_rank_0_ends_the_others_quietly(backend: str, tmp_path: Path) -> None:
    ranks = start_ranks(backend, 2, tmp_path, [*SDPO, *TRAIN, "--set", "train.lerning_rate=1", "--backend", backend])
    said = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 0], said
    assert "did you mean train.learning_rate?" in said[0]
    assert "sdpo:" not in said[1]


def test_model_missing_on_another_rank_is_said_by_rank_0(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("first", "second")]
    for home in homes:
        home.mkdir()
    (homes[0] / "base").symlink_to(Path(sdpo_mlx.__file__).with_name("assets") / "tiny")
    words = [*SDPO, *TRAIN, "--model", "./base"]
    ranks = [
        subprocess.Popen([sys.executable, *words], env=env, cwd=home, stderr=subprocess.PIPE, text=True)
        for env, home in zip(environments("mlx", 2, tmp_path), homes, strict=True)
    ]
    said = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert ranks[0].returncode == 2, said
    assert "(rank 1)" in said[0]
