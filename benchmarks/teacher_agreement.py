"""How far the untrained self-teacher agrees with the rewards (objective `auto`), by kind of context, on several tasks.

python benchmarks/teacher_agreement.py [--only tiny] [--problems 32]
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import functions

from sdpo_mlx.config import TeacherConfig
from sdpo_mlx.config.resolve import resolve
from sdpo_mlx.core.seeding import rng
from sdpo_mlx.rl.agreement import PROBLEMS, measure
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.rl.distillation import distillation_batch
from sdpo_mlx.rl.rollouts import rollout_seeds, sample

ROLLOUTS = 8
SMOLLM2 = ("model.name=smollm2", "model.backend=torch", "model.device=cpu", "task.name=code")
SMOLLM2 = (*SMOLLM2, "rollout.temperature=0.7", "rollout.max_tokens=96")
CASES: dict[str, tuple[str, ...]] = {
    "the embedded model, `tiny`": ("model.name=tiny", "task.name=tiny"),
    "SmolLM2-135M, easy functions": (*SMOLLM2, "task.data=easy"),
    "SmolLM2-135M, hard functions": (*SMOLLM2, "task.data=hard"),
}
TEACHERS = {"": TeacherConfig(), "attempt": TeacherConfig(include_attempt=True)}


def agreements(parts: Components, count: int) -> dict[str, list[float]]:
    """Return the agreements of training problems with right and wrong rollouts, by kind of context."""
    problems = parts.task.problems("train")
    chosen = [problems[int(i)] for i in rng("agreement").permutation(len(problems))[:count]]
    seeds = rollout_seeds("agreement", 0, 0, chosen, ROLLOUTS)
    groups = sample(parts.policy, parts.task, parts.chat, chosen, parts.sampling, seeds).groups
    mixed = [group for group in groups if 0 < group.pass_rate < 1]
    build = partial(distillation_batch, chat=parts.chat, context_length=parts.policy.info.context_length, seed=0)
    found: dict[str, list[float]] = {}
    for name, teacher in TEACHERS.items():
        for start in range(0, len(mixed), PROBLEMS):
            for kind, more in measure(parts.policy, mixed[start : start + PROBLEMS], teacher, build).items():
                found.setdefault(kind + name, []).extend(more)
    return found


def figure(found: Sequence[float]) -> str:
    """Return mean, standard error and number of problems."""
    if not found:
        return "–"
    error = stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return f"{fmean(found):+.2f} (s.e. {error:.2f}, {len(found)} problems)"


def settings(case: str, folder: Path) -> Iterator[str]:
    """Yield the settings of a case; sets of functions are written into the folder."""
    for each in CASES[case]:
        key, _, value = each.partition("=")
        if key == "task.data":
            value = str(folder / f"{value}.jsonl")
            lines = [json.dumps(row) for row in functions.rows(*functions.SETS[Path(value).stem])]
            Path(value).write_text("\n".join(lines) + "\n")
        yield f"{key}={value}"


def main() -> None:
    """Print the table in docs/how-it-works.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--problems", type=int, default=32)
    options = parser.parse_args()
    print("| model and task | demonstrations | feedback alone | feedback with the attempt quoted |\n|---|---|---|---|")
    for case in (name for name in CASES if options.only in name):
        with tempfile.TemporaryDirectory() as folder:
            parts = build_components(resolve(None, [*settings(case, Path(folder))], {}).config)
            found: dict[str, Any] = agreements(parts, options.problems)
        columns = (figure(found.get(name, [])) for name in ("demonstration", "feedback", "feedbackattempt"))
        print(f"| {case} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
