"""A base split over ranks learns, scores and samples as in one process; its state moves between numbers of ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child_processes import ONE_THREAD
from requirements import needs_torch
from small_policies import folder
from waiting import HANG_SECONDS

pytestmark = needs_torch


def run_ranks(size: int, tmp_path: Path, name: str, start: str = "none", recompute: bool = False) -> dict[str, Any]:
    """What rank 0 left; one rank runs in this process."""
    import shard_process

    out = tmp_path / f"{name}.npz"
    given = (str(folder("qwen3")), str(out), str(tmp_path / start))
    if size == 1:
        shard_process.main(*given, recompute)
    else:
        done = subprocess.run(
            [sys.executable, shard_process.__file__, str(size), *given, str(recompute)],
            env=ONE_THREAD,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    with np.load(out, allow_pickle=False) as found:
        return dict(found)


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, expected in theirs.items():
        if name.startswith("answer/"):
            np.testing.assert_array_equal(ours[name], expected)
        elif name.startswith("gradient/") or name in ("loss", "score", "divergence"):
            np.testing.assert_allclose(ours[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)
    assert not ours["checked"].size


@pytest.mark.parametrize(
    ("size", "recompute"),
    [(2, False), pytest.param(2, True, marks=pytest.mark.slow), pytest.param(4, True, marks=pytest.mark.slow)],
)
def test_base_split_over_ranks_learns_scores_and_samples_like_one_process(
    size: int, recompute: bool, tmp_path: Path
) -> None:
    one = run_ranks(1, tmp_path, "one")
    split = run_ranks(size, tmp_path, "split", recompute=recompute)
    assert int(split["ranks"]) == size
    assert int(split["held"]) < int(split["whole"]) == int(one["held"])
    assert_equal(split, one)


@pytest.mark.slow
def test_state_moves_from_one_rank_to_two_and_back(tmp_path: Path) -> None:
    """Each run begins with the state of the one before; one process throughout gives the same."""
    for number, size in enumerate((1, 2, 1)):
        start = f"a{number - 1}.npz.state.npz"
        last = run_ranks(size, tmp_path, f"a{number}", start)
    for number in range(3):
        expected = run_ranks(1, tmp_path, f"b{number}", f"b{number - 1}.npz.state.npz")
    assert_equal(last, expected)


def test_one_process_is_told_that_it_holds_the_whole_base() -> None:
    from sdpo_mlx.backends.registry import open_policy
    from sdpo_mlx.config import ModelConfig, TeacherConfig, TrainConfig

    alone = open_policy(folder("qwen3"), ModelConfig(backend="torch", shard=True), TeacherConfig(), TrainConfig())
    assert any("start with torchrun" in each for each in alone.warnings())


def test_pass_that_runs_out_of_memory_is_not_tried_again_while_other_ranks_wait_in_it() -> None:
    import torch
    from torch import nn

    from sdpo_mlx.backends.distributed.process_group import PassError, ProcessGroup
    from sdpo_mlx.backends.torch.model import Model
    from sdpo_mlx.backends.torch.out_of_memory import is_out_of_memory
    from sdpo_mlx.backends.torch.sharding import _Passes

    class Full(nn.Module):
        def forward(self, *_: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    body = Full()
    _Passes(Model(body, body, 9, torch.device("cpu"), sharded=True), nn.Identity(), ProcessGroup())
    with pytest.raises(PassError, match="OutOfMemoryError: CUDA out of memory") as raised:
        body(torch.zeros(1))
    assert not is_out_of_memory(raised.value)
