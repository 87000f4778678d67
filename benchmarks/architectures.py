"""Try every architecture of mlx-lm, and of transformers, on a small random model, and write what was found.

`python benchmarks/architectures.py` writes `sdpo_mlx/assets/architectures.json`, which `sdpo models check` reads;
`python benchmarks/tables.py` makes the tables of docs/models.md of it. Each architecture of mlx-lm runs in a process of
its own, since some end theirs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

TABLE = ROOT / "sdpo_mlx/assets/architectures.json"
PROMPT, RESPONSE, ROLLOUTS = 96, 32, 8  # tokens of the step whose memory is measured


def main() -> None:
    """Try all architectures of a backend, or with `--one NAME` a single one of mlx-lm in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["mlx", "torch"], help="only this backend")
    parser.add_argument("--one", metavar="NAME", help="print what is found for one architecture as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(tried(arguments.one)))
        return
    table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {"versions": {}}
    if arguments.backend != "torch":
        from mlx_architectures import architectures

        table["versions"]["mlx-lm"] = version("mlx-lm")
        table["mlx"] = {name: in_a_process(name) for name in architectures()}
    if arguments.backend != "mlx":
        from torch_architectures import OPTIONS

        table["versions"]["transformers"] = version("transformers")
        table["torch"] = {name: tried_on_torch(name) for name in OPTIONS}
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def in_a_process(name: str) -> dict[str, Any]:
    """Return what was found for an architecture, also if its process ends."""
    print(name, flush=True)
    command = [sys.executable, __file__, "--one", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip() or done.stdout.strip() or "its process ended").splitlines()[-1]
        return {"untried": " ".join(last.split())[:120]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def tried(name: str) -> dict[str, Any]:
    """Open a small random model as a policy, check its gradient, take a step, and measure its memory."""
    from mlx_architectures import write_architecture

    from sdpo_mlx.backends.mlx.policy import MLXPolicy
    from sdpo_mlx.config import AdapterConfig, ModelConfig, TeacherConfig, TrainConfig
    from sdpo_mlx.core.errors import ConfigError

    with TemporaryDirectory(prefix="sdpo-architecture-") as temporary:
        try:
            folder = write_architecture(Path(temporary) / "model", name)
        except Exception as error:  # what the generator of configurations does not know, or mlx-lm cannot run here
            return {"untried": f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"}
        try:
            train = TrainConfig(learning_rate=1e-2, grad_checkpoint=True)
            policy = MLXPolicy(folder, ModelConfig(adapter=AdapterConfig(rank=2)), TeacherConfig(), train)
            policy.check_gradient()
        except ConfigError as error:
            reason = error.what.partition(": ")[2] or error.what
            return {"untried": "its layers are Metal kernels"} if "metal_kernel" in reason else {"refused": reason}
    found = {"learning": policy.info.details["learning"], "generation": "batched" if policy.model.batched else "single"}
    return {**found, "memory": round(step_peak(policy) / whole_peak(policy), 2)}


def tried_on_torch(name: str) -> dict[str, Any]:
    """Open a small random model as a policy on torch, and check its gradient."""
    from torch_architectures import write_architecture

    from sdpo_mlx.backends.torch.policy import TorchPolicy
    from sdpo_mlx.config import AdapterConfig, ModelConfig, TeacherConfig, TrainConfig
    from sdpo_mlx.core.errors import ConfigError

    print(name, flush=True)
    with TemporaryDirectory(prefix="sdpo-architecture-") as temporary:
        folder = write_architecture(Path(temporary) / "model", name)
        try:
            model = ModelConfig(name=name, backend="torch", adapter=AdapterConfig(rank=2))
            policy = TorchPolicy(folder, model, TeacherConfig(), TrainConfig())
            policy.check_gradient()
        except ConfigError as error:
            return {"refused": error.what.partition(": ")[2] or error.what}
    prompts, generation = (
        ("shared", "separate")[not policy.model.shares],
        ("batched", "single")[not policy.model.batched],
    )
    return {"learning": f"body and head, {prompts} prompts", "generation": generation}


def batch(vocabulary: int) -> list[Any]:
    """Return rollouts of one prompt."""
    import numpy as np

    ids = (np.arange(PROMPT + RESPONSE + ROLLOUTS, dtype=np.int32) * 31 + 5) % vocabulary
    return [np.concatenate([ids[:PROMPT], ids[PROMPT + i : PROMPT + i + RESPONSE]]) for i in range(ROLLOUTS)]


def step_peak(policy: Any) -> float:
    """Return the peak memory of a learning step above what is held, in bytes."""
    import mlx.core as mx
    import numpy as np

    from sdpo_mlx.config import ObjectiveConfig
    from sdpo_mlx.types import DistillSample

    span, logps = (PROMPT, PROMPT + RESPONSE), np.full(RESPONSE, -3.0, np.float32)
    samples = [
        DistillSample("p", i, ids, span, ids, span, logps) for i, ids in enumerate(batch(policy.model.vocab_size))
    ]
    policy.learn(samples, ObjectiveConfig(), 0.0)
    policy.memory()
    before = mx.get_active_memory()
    policy.learn(samples, ObjectiveConfig(), 0.0)
    return float(policy.memory()["learn"] - before)


def whole_peak(policy: Any) -> float:
    """Return the peak memory of autodiff through the whole model with separate prompts, in bytes."""
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np

    from sdpo_mlx.backends.mlx.adapter import assign

    rows = mx.array(np.stack(batch(policy.model.vocab_size)))
    whole = policy.model.whole

    def loss(weights: Mapping[str, Any]) -> mx.array:
        assign(whole, weights)
        logits = whole(rows[:, :-1])[:, PROMPT - 1 :]
        return nn.losses.cross_entropy(logits, rows[:, PROMPT:], reduction="mean")

    mx.eval(mx.grad(loss)(policy.student))
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.grad(loss)(policy.student))
    assign(whole, policy.student)
    return float(mx.get_peak_memory() - before)


if __name__ == "__main__":
    main()
