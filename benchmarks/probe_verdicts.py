"""Verdicts of the probe that `sdpo train` runs before its first update, on the embedded model, by settings and seed.

python benchmarks/probe_verdicts.py --seeds 8
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from sdpo_mlx.config.resolve import resolve
from sdpo_mlx.evaluation.probe import probe_groups
from sdpo_mlx.evaluation.probe_verdict import ProbeVerdict, judge
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.rl.rollouts import Sampler, rollout_seeds, sample
from sdpo_mlx.training.session import PROBE_ROLLOUTS

CASES = {
    "default contexts": (),
    "feedback alone": ("teacher.demonstration=off",),
    "feedback without suggestions": ("task.feedback=no_suggestion",),
    "no feedback": ("task.feedback=none",),
    "groups of 2": ("rollout.group_size=2",),
    "`tiny:mid`": ("task.name=tiny:mid",),
    "template `facts`": ("teacher.template=facts",),
}


def verdict(parts: Components, seed: int) -> ProbeVerdict:
    """Return the verdict on the first step of a run with this seed."""
    cfg = parts.cfg.model_copy(update={"train": parts.cfg.train.model_copy(update={"seed": seed})})
    parts = replace(parts, cfg=cfg)
    problems = Sampler(parts.task.problems("train"), cfg.rollout.problems_per_step, seed).batch(0)
    seeds = rollout_seeds("rollout", seed, 0, problems, cfg.rollout.group_size)
    groups = sample(parts.policy, parts.task, parts.chat, problems, parts.sampling, seeds).groups
    return judge(probe_groups(parts, groups, PROBE_ROLLOUTS), cfg)


def row(name: str, sets: Sequence[str], seeds: int) -> str:
    """Return one row of the table in docs/how-it-works.md."""
    parts = build_components(resolve(None, sets, {"model.name": "tiny"}).config)
    found = [verdict(parts, seed) for seed in range(seeds)]
    counts = Counter(each.kind for each in found)
    gains = [100 * each.best.gain.difference for each in found if each.best]
    kinds = ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
    return f"| {name} | {kinds} | {min(gains):+.0f} to {max(gains):+.0f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    seeds = parser.parse_args().seeds
    print("| run | verdicts | gain, points |\n|---|---|---|")
    for name, sets in CASES.items():
        print(row(name, sets, seeds), flush=True)


if __name__ == "__main__":
    main()
