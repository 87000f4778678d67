"""The ranks of the tests of a base split over them: `python shard_process.py RANKS BASE OUT START RECOMPUTE`.

The ranks are forks of one process, so that torch is imported once. Rank 0 samples, scores, checks the gradient, loads
the state in START if that exists, takes a gradient without a step, then two steps, and leaves what came of them in
OUT and the state beside it; alone it does the same in one process.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from rank_process import OBJECTIVE, PROMPTS, ROLLOUTS, SEEDS, complete, kept_gradient
from small_policies import stir

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.distributed.launch import open_process_group
from sdpo_mlx.backends.distributed.policy import DistributedPolicy
from sdpo_mlx.backends.distributed.process_group import ProcessGroup
from sdpo_mlx.config import AdapterConfig, ModelConfig, TeacherConfig, TrainConfig


def own_policy(base: Path, group: ProcessGroup, recompute: bool) -> Any:
    """The small policy of one rank, its base split over all."""
    from sdpo_mlx.backends.torch.policy import TorchPolicy

    model = ModelConfig(name="qwen3", backend="torch", device="cpu", shard=True, adapter=AdapterConfig(rank=4))
    train = TrainConfig(learning_rate=1e-2, micro_batch_tokens=40, grad_checkpoint=recompute)
    policy = TorchPolicy(base, model, TeacherConfig(update_rate=0.3), train, group=group)
    stir(policy)
    return policy


def led(own: Any, policy: Any, start: Path) -> dict[str, Any]:
    """What rank 0 has done."""
    sampling = SamplingParams(9, 0.8, 1.0, frozenset({3}), at_stop_text=complete)
    said = {(at, n): answer.ids_T for at, n, answer in policy.generate(PROMPTS, sampling, SEEDS)}
    kept = {f"answer/{at}/{n}": ids for (at, n), ids in said.items()}
    text = np.arange(12, dtype=np.int32)
    kept["score"] = policy.score("teacher", [text], [(4, 12)])[0].logps_T
    kept["checked"] = np.array(policy.check_gradient(), dtype=str)
    if start.exists():
        with np.load(start) as found:
            state: dict[str, dict[str, Any]] = {"student": {}, "teacher": {}, "optimizer": {}}
            for key in found:
                part, _, name = key.partition("/")
                state[part][name] = found[key]
        policy.load_state(state)
    kept |= kept_gradient(own, policy)
    for _ in range(2):
        policy.learn(ROLLOUTS, OBJECTIVE, 1e-3)
        policy.update_teacher(TeacherConfig(update_rate=0.1))
    return kept


def main(base: str, out: str, start: str, recompute: bool) -> None:
    group = open_process_group()
    with group.together():
        own = own_policy(Path(base), group, recompute)
    policy = DistributedPolicy(own, "base", group, complete) if group.size > 1 else own
    if group.rank:
        policy.serve()
    else:
        kept = led(own, policy, Path(start))
        parts = (getattr(each, "to_local", lambda each=each: each)() for each in own.model.whole.parameters())
        figures = {"held": sum(part.numel() for part in parts), "whole": own.info.parameters, "ranks": group.size}
        np.savez(out, **{name: np.array(figure) for name, figure in figures.items()}, **kept)
        state = {f"{part}/{name}": array for part, arrays in policy.state().items() for name, array in arrays.items()}
        np.savez(f"{out}.state.npz", **state)
    group.close()


def forked(size: int, *arguments: Any) -> int:
    """Run `main` on so many ranks; return how many failed."""
    from ranks import environments

    import sdpo_mlx.backends.torch.policy  # noqa: F401  once, before the fork

    children = []
    for environment in environments("torch", size, Path(arguments[1]).parent):
        if child := os.fork():
            children.append(child)
            continue
        os.environ.update(environment)
        try:
            main(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


if __name__ == "__main__":
    sys.exit(forked(int(sys.argv[1]), *sys.argv[2:5], sys.argv[5] == "True"))
