"""Estimate a step of large models on machines that were not measured.

`python benchmarks/large_models.py > docs/large-models.md`. Arithmetic only: the memory and time model of `sdpo plan`
with the published bandwidth and matrix rate of each machine.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files

from sdpo_mlx.backends.memory_plan import USABLE, choose, memory, work_of
from sdpo_mlx.backends.step_time import Machine, Times, times
from sdpo_mlx.config import Config
from sdpo_mlx.models.dimensions import ModelDims

GB = 2**30
COMPUTE, READING = 0.4, 0.7  # assumed share of the published rates that a step reaches
# Published: memory (GB), bandwidth (GB/s), 16-bit matrix rate (TFLOP/s, without sparsity).
MACHINES = {
    "M4 Pro, 24 GB": (24, 273, 9.2),
    "M3 Ultra, 96 GB": (96, 819, 28.0),
    "H100 SXM, 80 GB": (80, 3_350, 989.0),
}
SETTINGS = {
    "Qwen3-4B, 4 bits, 32 x 8 rollouts of 1,024": ("mlx-community/Qwen3-4B-Instruct-2507-4bit", 1_024, 10_240),
    "Qwen3-8B, 4 bits, 32 x 8 rollouts of 8,192 (the paper's lengths)": ("mlx-community/Qwen3-8B-4bit", 8_192, 10_240),
}
PROMPT = 400


def main() -> None:
    """Print the page."""
    shapes = json.loads((files("sdpo_mlx") / "assets" / "shapes.json").read_text(encoding="utf-8"))
    print(HEAD)
    for title, (model, answer, limit) in SETTINGS.items():
        print(f"\n## {title}\n")
        print("| machine | fits | peak | concurrency | prefill | decode | teacher | learn | step | longest |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for machine in MACHINES:
            print(row(ModelDims.of(shapes[model], model), machine, answer, limit))
    print(TAIL)


def row(shape: ModelDims, name: str, answer: int, limit: int) -> str:
    """Return the table row of one machine."""
    size, bandwidth, rate = MACHINES[name]
    cfg = Config.model_validate(
        {
            "rollout": {"max_tokens": answer, "problems_per_step": 32},
            "teacher": {"max_context_tokens": limit},
        }
    )
    work = work_of(cfg, PROMPT, min(limit, PROMPT + answer + 512), 2)
    work = choose(shape, cfg, work, USABLE * size * GB)
    held = memory(shape, cfg, work)
    machine = Machine(COMPUTE * rate * 1e12, READING * bandwidth * 1e9, metal=name.startswith("M"))
    spent: Times = times(shape, replace(work), machine)
    fits = "yes" if held.highest <= USABLE * size * GB else "no"
    phases = " | ".join(duration(getattr(spent, phase)) for phase in ("prefill", "decode", "teacher", "learn", "total"))
    return f"| {name} | {fits} | {held.highest / GB:.1f} GB | {work.concurrency} | {phases} | {spent.dominant} |"


def duration(seconds: float) -> str:
    """Return a duration as text."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"


HEAD = f"""# Estimates for large models

Nothing on this page was measured: no Mac and no large model were available. The figures come from the model that
`sdpo plan` uses. Its memory part was compared with MLX's counters on small models ([performance.md](performance.md)).
Its time part counts operations and bytes. `python benchmarks/large_models.py` writes this page.

Assumptions: a step reaches {COMPUTE:.0%} of the published matrix rate and {READING:.0%} of the bandwidth. Every rollout
has full length. {USABLE:.0%} of the memory is usable. LoRA of rank 16, prompts of {PROMPT} tokens, 16-bit activations.
A teacher context is the prompt, one demonstration and 512 tokens of feedback.

| machine | memory | bandwidth | 16-bit rate |
|---|---|---|---|
""" + "\n".join(f"| {name} | {m} GB | {b} GB/s | {r} TFLOP/s |" for name, (m, b, r) in MACHINES.items())

TAIL = """
## How to read it

- Decoding reads all weights for each token, so it is limited by bandwidth while few rollouts run at once. On a Mac
  with 4-bit weights, from 8 rollouts on a token takes 5.3 times as long to read as with one (reported: 4.5 to 6.1, mlx
  3852, 4265), for 32 no longer than for 8. The teacher and learning passes multiply matrices, so they are limited by
  the matrix rate. On a Mac these passes take longest, unless few rollouts are decoded at once. On the H100 decoding
  does; an inference engine with larger batches (vLLM) would shorten it.
- Two Macs nearly halve the teacher and learning passes. Samples are distributed by cost. One sum of the adapter's
  gradient crosses the network per step: 132 MB for rank 16 on 4B weights, 0.1 s over 10 Gbit/s. Decoding gets faster
  as long as each Mac still fills its batch. A second Mac does not help a model that does not fit: each holds the base.
- What does not fit above is limited by long rollouts, not by the weights: the key-value cache and the teacher's hidden
  states. `sdpo plan --memory 24GB --model qwen:8b` names the settings that would make it fit.
"""

if __name__ == "__main__":
    main()
