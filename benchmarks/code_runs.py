"""SmolLM2 on Python problems: SDPO, GRPO and hybrid with the same budget, held-out before and after.

Run folders lie in runs/results/; what is finished there is not trained again. Each adapter of the last step
answers every held-out problem SAMPLES times; so does the untouched model. Adds to docs/results.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from results import DOCS, STORE, machine

from sdpo_mlx import checkpoint
from sdpo_mlx.evaluate import held_out, sampling_params
from sdpo_mlx.intervals import clustered, paired
from sdpo_mlx.metrics import read_events
from sdpo_mlx.sampling import rollout_seeds, sample
from sdpo_mlx.settings import resolve
from sdpo_mlx.setup import Setup, assemble

RUNS = DOCS.parent / "runs" / "results"
SAMPLES = 16
KINDS = ("sdpo", "grpo", "hybrid")


def main() -> None:
    """Train what is missing, score everything, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    options = parser.parse_args()
    setup = assemble(resolve(None, [], {"model.name": "smollm2", "task.name": "code:easy"}).config)
    rows = [{"label": "untouched", **_score(setup)}]
    for kind in options.kinds:
        folder = RUNS / f"code-{kind}"
        command = ["train", "--model", "smollm2", "--task", "code:easy", "--objective", kind, "--steps"]
        if not _finished(folder, options.steps):
            run = [sys.executable, "-m", "sdpo_cli.main", *command, str(options.steps), "--out", str(folder)]
            subprocess.run(run, check=True)
        loaded = checkpoint.load(folder / "checkpoints")
        assert loaded is not None
        setup.policy.load_student(loaded.state["student"])
        rows.append({"label": kind, **_training(folder), **_score(setup)})
    for row in rows[1:]:
        row["difference"] = _difference(rows[0]["rewards"], row["rewards"])
    store = json.loads(STORE.read_text())
    store["code"] = {"rows": rows, "machine": machine(), "samples": SAMPLES}
    STORE.write_text(json.dumps(store, indent=0) + "\n")


def _finished(folder: Path, steps: int) -> bool:
    return folder.exists() and max(checkpoint.steps(folder / "checkpoints"), default=0) >= steps


def _score(setup: Setup) -> dict[str, Any]:
    """Held-out success with its interval, and how the answers ended."""
    cfg, problems = setup.cfg, held_out(setup.task, setup.cfg.eval)
    seeds = rollout_seeds("code-runs", 0, 0, problems, SAMPLES)
    sampling = sampling_params(cfg.eval, cfg.rollout, setup.chat)
    groups = sample(setup.policy, setup.task, setup.chat, problems, sampling, seeds).groups
    rewards = [[feedback.reward for feedback in group.feedback] for group in groups]
    low, high = clustered(rewards, seed=0)
    kinds = Counter(feedback.kind for group in groups for feedback in group.feedback)
    lengths = [rollout.ids_T.size for group in groups for rollout in group.rollouts]
    return {
        "score": sum(map(sum, rewards)) / sum(map(len, rewards)),
        "low": low,
        "high": high,
        "rewards": rewards,
        "kinds": dict(kinds),
        "length": sum(lengths) / len(lengths),
    }


def _training(folder: Path) -> dict[str, Any]:
    """Success among the sampled answers, step by step, and the time it took."""
    steps = [event for event in read_events(folder / "events.jsonl") if event["type"] == "step"]
    seconds = sum(value for event in steps for name, value in event.items() if name.startswith("time/"))
    return {
        "train": [event["success/rate"] for event in steps],
        "generations": steps[-1]["generations/total"],
        "minutes": seconds / 60,
    }


def _difference(before: list[list[float]], after: list[list[float]]) -> list[float]:
    mean, (low, high) = paired(before, after, seed=0)
    return [mean, low, high]


if __name__ == "__main__":
    main()
