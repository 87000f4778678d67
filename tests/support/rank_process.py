"""One rank of the several-ranks tests: `python rank_process.py mlx|torch OUT`, started by a launcher or by hand.

All ranks hold the same small policy. Rank 0 samples, takes a gradient without a step, then four steps, and leaves
what came of them in OUT; alone it does the same in one process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from small_policies import folder, make_policy, make_samples, stir

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.distributed.launch import open_process_group
from sdpo_mlx.backends.distributed.policy import DistributedPolicy
from sdpo_mlx.config import AdapterConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig

OBJECTIVE = ObjectiveConfig(kind="hybrid", support="full")
ROLLOUTS = [sample for seed in range(2) for sample in make_samples(seed, "hybrid")][:8]
PROMPTS = [np.arange(n, dtype=np.int32) + 4 for n in (9, 3, 6)]
SEEDS = [[1, 2, 3], [4], [5, 6]]


def complete(ids: Any) -> bool:
    """Stands for a stop text that some of the rollouts have."""
    return (ids[-1] + len(ids)) % 11 == 0


def own_policy(backend: str) -> Any:
    """The small policy of one rank."""
    if backend == "mlx":
        return make_policy("qwen3")
    from sdpo_mlx.backends.torch.policy import TorchPolicy

    model = ModelConfig(name="qwen3", backend="torch", device="cpu", adapter=AdapterConfig(rank=4))
    train = TrainConfig(learning_rate=1e-2, micro_batch_tokens=40)
    policy = TorchPolicy(folder("qwen3"), model, TeacherConfig(update_rate=0.3), train)
    stir(policy)
    return policy


def kept_gradient(own: Any, policy: Any) -> dict[str, Any]:
    """The gradient of a step that is not taken."""
    kept: dict[str, Any] = {}
    take = own._apply

    def seen(found: Any, *rest: Any) -> Any:
        kept.update({f"gradient/{name}": np.asarray(array).copy().reshape(-1) for name, array in found.grads.items()})
        return take(found, *rest)

    own._apply = seen
    update = policy.learn(ROLLOUTS, OBJECTIVE, 0.0)
    own._apply = take
    kept["loss"] = np.array([update.loss, update.divergence, update.entropy, update.tokens])
    kept["divergence"] = np.concatenate(update.divergence_T)
    return kept


def led(own: Any, policy: Any) -> dict[str, Any]:
    """What rank 0 has done."""
    sampling = SamplingParams(9, 0.8, 1.0, frozenset({3}), at_stop_text=complete)
    said = {(at, n): answer.ids_T for at, n, answer in policy.generate(PROMPTS, sampling, SEEDS)}
    answers = {f"answer/{at}/{n}": ids for (at, n), ids in said.items()}
    kept = {**answers, **kept_gradient(own, policy)}
    warnings: list[str] = []
    for _ in range(4):
        warnings += policy.learn(ROLLOUTS, OBJECTIVE, 1e-3).warnings
        policy.update_teacher(TeacherConfig(update_rate=0.1))
    state = policy.state()
    kept["warnings"] = np.array(warnings, dtype=str)
    return {**kept, **{f"{part}/{n}": a.reshape(-1) for part in ("student", "teacher") for n, a in state[part].items()}}


def main(backend: str, out: Path) -> None:
    group, own = open_process_group(), own_policy(backend)
    policy = DistributedPolicy(own, "base", group, complete) if group.size > 1 else own
    if group.rank:
        policy.serve()
    else:
        np.savez(out, ranks=np.array(group.size), **led(own, policy))
    group.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
