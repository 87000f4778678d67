"""Several ranks as real processes: the same gradient, the same steps, the same run as one process, and no hang."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rank_process
from child_processes import ONE_THREAD, Child, sdpo_child
from paths import SUPPORT
from ranks import environments, launcher, start_ranks
from requirements import needs_torch
from waiting import HANG_SECONDS, wait_until

import sdpo_mlx
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import RunFolder

DRIVER = SUPPORT / "rank_process.py"
TRAIN = ["train", "--model", "tiny", "--task", "tiny", "--plain", "--out", "run", "--set", "eval.problems=2"]
TRAIN += ["--set", "eval.samples=1", "--set", "rollout.problems_per_step=4", "--set", "train.save_every=50"]
TRAIN += ["--group-size", "2", "--max-tokens", "16"]


# In the default suite torch's two ranks are those of `numerics/test_torch_sharding.py`.
TORCH_SLOW = ["mlx", pytest.param("torch", marks=[needs_torch, pytest.mark.slow])]


SPLIT = ["--set", "model.shard=true"]


def kept(out: Path) -> dict[str, Any]:
    with np.load(out, allow_pickle=False) as found:
        return dict(found)


def gap(ours: dict[str, Any], theirs: dict[str, Any], prefix: str) -> float:
    """Relative distance of all arrays of a kind."""
    names = [name for name in ours if name.startswith(prefix)]
    assert names
    difference = sum(float(((ours[n].astype(float) - theirs[n]) ** 2).sum()) for n in names)
    return float(np.sqrt(difference / sum(float((theirs[n].astype(float) ** 2).sum()) for n in names)))


@pytest.mark.parametrize("backend", TORCH_SLOW)
def test_two_ranks_answer_and_learn_like_one(backend: str, tmp_path: Path) -> None:
    alone, both = tmp_path / "one.npz", tmp_path / "two.npz"
    _, said = Child(rank_process.main, (backend, alone), ONE_THREAD, tmp_path).communicate()
    assert alone.exists(), said
    done = subprocess.run(
        [*launcher(backend, 2), str(DRIVER), backend, str(both)],
        # mlx.launch leaves files of its own in the temporary folder.
        env={**ONE_THREAD, "PYTHONPATH": str(DRIVER.parent), "TMPDIR": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert both.exists(), done.stderr
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


def sdpo(folder: Path, *words: str) -> tuple[int | None, str]:
    """Train in one process; return its exit code and stderr."""
    child = sdpo_child([*TRAIN, *words], folder)
    _, said = child.communicate()
    return child.returncode, said


def trained_until(ranks: list[Child], folder: Path, steps: int) -> None:
    """Wait until so many steps are done; fail if a rank ends before."""
    wait_until(lambda: steps_done(folder) >= steps or any(rank.returncode is not None for rank in ranks))
    assert all(rank.returncode is None for rank in ranks), ranks[0].communicate()


@pytest.mark.parametrize(
    ("backend", "how", "words"),
    [
        ("mlx", "killed", []),
        pytest.param("torch", "killed", [], marks=[needs_torch, pytest.mark.slow]),
        pytest.param("torch", "killed", SPLIT, marks=[needs_torch, pytest.mark.slow]),
        # Half a minute of silence each; the heartbeat's own test (test_process_group.py) is quick.
        pytest.param("mlx", "frozen", [], marks=pytest.mark.slow),
        pytest.param("torch", "frozen", [], marks=[needs_torch, pytest.mark.slow]),
    ],
)
def test_lost_rank_ends_the_run_with_its_state_saved(backend: str, how: str, words: list[str], tmp_path: Path) -> None:
    ranks = start_ranks(backend, 2, tmp_path, [*TRAIN, "--steps", "500", "--backend", backend, *words])
    try:
        trained_until(ranks, tmp_path, 2)
        ranks[1].send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        _, said = ranks[0].communicate()
    finally:
        for rank in ranks:
            rank.kill()
    assert ranks[0].returncode == 7, said
    assert "rank 1 was lost" in said
    assert "Traceback" not in said
    done = steps_done(tmp_path)
    assert max(checkpoint.steps(RunFolder(tmp_path / "run").checkpoints)) == done
    code, said = sdpo(tmp_path, "--steps", str(done + 1), "--backend", backend)
    assert code == 0, said
    assert "not bit for bit" in said
    assert steps_done(tmp_path) == done + 1


@pytest.mark.parametrize("backend", TORCH_SLOW)
def test_interrupt_of_any_rank_saves_and_ends_all(backend: str, tmp_path: Path) -> None:
    ranks = start_ranks(backend, 2, tmp_path, [*TRAIN, "--steps", "500", "--backend", backend])
    try:
        trained_until(ranks, tmp_path, 1)
        ranks[1].send_signal(signal.SIGINT)
        said = [rank.communicate()[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [130, 0], said
    assert f"saved at step {steps_done(tmp_path)}" in said[0]


@pytest.mark.parametrize("backend", TORCH_SLOW)
def test_run_of_one_rank_goes_on_on_two(backend: str, tmp_path: Path) -> None:
    assert sdpo(tmp_path, "--backend", backend, "--steps", "1")[0] == 0
    ranks = start_ranks(backend, 2, tmp_path, [*TRAIN, "--backend", backend, "--steps", "2"])
    said = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "not bit for bit" in said[0]
    assert steps_done(tmp_path) == 2


@needs_torch
@pytest.mark.slow
def test_run_with_a_split_base_moves_from_one_rank_to_two_and_back(tmp_path: Path) -> None:
    words = ["--backend", "torch", "--set", "train.schedule=constant", *SPLIT]
    alone = tmp_path / "alone"
    alone.mkdir()
    for folder, steps in ((alone, "3"), (tmp_path, "1")):
        code, one = sdpo(folder, *words, "--steps", steps)
        assert code == 0, one
    ranks = start_ranks("torch", 2, tmp_path, [*TRAIN, *words, "--steps", "2"])
    said = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    code, one = sdpo(tmp_path, *words, "--steps", "3")
    assert code == 0, one
    figures = [
        [
            (event["loss"], event["grad/norm"])
            for event in read_events(at / "run" / "events.jsonl")
            if event["type"] == "step"
        ]
        for at in (tmp_path, alone)
    ]
    np.testing.assert_allclose(figures[0], figures[1], rtol=1e-3)


@pytest.mark.parametrize("backend", TORCH_SLOW)
def test_mistake_of_rank_0_ends_the_others_quietly(backend: str, tmp_path: Path) -> None:
    ranks = start_ranks(backend, 2, tmp_path, [*TRAIN, "--set", "train.lerning_rate=1", "--backend", backend])
    said = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 0], said
    assert "did you mean train.learning_rate?" in said[0]
    assert "sdpo:" not in said[1]


def test_model_missing_on_another_rank_is_said_by_rank_0(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("first", "second")]
    for home in homes:
        home.mkdir()
    (homes[0] / "base").symlink_to(Path(sdpo_mlx.__file__).with_name("assets") / "tiny")
    ranks = [
        sdpo_child([*TRAIN, "--model", "./base"], home, environment)
        for environment, home in zip(environments("mlx", 2, tmp_path), homes, strict=True)
    ]
    said = [rank.communicate()[1] for rank in ranks]
    assert ranks[0].returncode == 2, said
    assert "(rank 1)" in said[0]
