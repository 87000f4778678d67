"""What the step of a large model costs where we have no machine: `python benchmarks/scale.py > docs/scale.md`.

Arithmetic only: `sdpo plan`'s own model of memory and time, with published bandwidths and rates of the machines.
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
COMPUTE, READING = 0.4, 0.7  # share of the published rate that a step is taken to reach
# Published: memory (GB), bandwidth (GB/s), 16-bit matrix rate (TFLOP/s, without sparsity).
MACHINES = {
    "M4 Pro, 24 GB": (24, 273, 9.2),
    "M3 Ultra, 96 GB": (96, 819, 28.0),
    "H100 SXM, 80 GB": (80, 3_350, 989.0),
}
SETTINGS = {
    "Qwen3-4B, 4 bits, 32 x 8 answers of 1,024": ("mlx-community/Qwen3-4B-Instruct-2507-4bit", 1_024, 10_240),
    "Qwen3-8B, 4 bits, 32 x 8 answers of 8,192 (the paper's lengths)": ("mlx-community/Qwen3-8B-4bit", 8_192, 10_240),
}
PROMPT = 400


def main() -> None:
    """Print the page."""
    shapes = json.loads((files("sdpo_mlx") / "assets" / "shapes.json").read_text(encoding="utf-8"))
    print(HEAD)
    for title, (model, answer, limit) in SETTINGS.items():
        print(f"\n## {title}\n")
        print("| machine | fits | peak | at once | prefill | decode | teacher | learn | step | longest |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for machine in MACHINES:
            print(row(ModelDims.of(shapes[model], model), machine, answer, limit))
    print(TAIL)


def row(shape: ModelDims, name: str, answer: int, limit: int) -> str:
    """One machine's line."""
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
    spent: Times = times(shape, replace(work), Machine(COMPUTE * rate * 1e12, READING * bandwidth * 1e9))
    fits = "yes" if held.highest <= USABLE * size * GB else "no"
    phases = " | ".join(duration(getattr(spent, phase)) for phase in ("prefill", "decode", "teacher", "learn", "total"))
    return f"| {name} | {fits} | {held.highest / GB:.1f} GB | {work.concurrency} | {phases} | {spent.dominant} |"


def duration(seconds: float) -> str:
    """Seconds for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"


HEAD = f"""# At scale, on paper

Nothing on this page was measured: no Mac and no large model were at hand. It is what `sdpo plan`'s model of memory
(measured against MLX's counters on small models, [performance.md](performance.md)) and of time (operations and bytes)
says for machines whose published figures are known, made by `python benchmarks/scale.py`. A step is taken to reach
{COMPUTE:.0%} of the published matrix rate and {READING:.0%} of the bandwidth; every answer is taken to have its full
length; {USABLE:.0%} of the memory counts as usable. LoRA of rank 16, prompts of {PROMPT} tokens, teacher contexts of
prompt, one answer and 512 tokens of feedback, activations in 16 bits.

| machine | memory | bandwidth | 16-bit rate |
|---|---|---|---|
""" + "\n".join(f"| {name} | {m} GB | {b} GB/s | {r} TFLOP/s |" for name, (m, b, r) in MACHINES.items())

TAIL = """
## How to read it

- Writing an answer reads all weights for each token, so it waits for bandwidth while few answers are written at once;
  teacher and learning multiply, so they wait for the matrix rate. On a Mac the second costs more than the first: its
  bandwidth is good for its rate. On the H100 it is the other way round, and there an engine that serves many more
  answers at once (vLLM) would shorten the longest phase.
- Two Macs halve teacher and learning nearly exactly (samples are dealt out by cost, and one sum of the adapter's
  gradient crosses the cable a step: 132 MB for a rank of 16 on 4B weights, 0.1 s over 10 Gbit/s) and
  decoding as far as each still fills its batch. They do not help a model that does not fit: each holds the whole base.
- What does not fit above is held up by long answers, not by the weights: keys and values while they are written, and
  the teacher's hidden states. `sdpo plan --memory 24GB --model qwen:8b` names the settings that would make it fit.
"""

if __name__ == "__main__":
    main()
