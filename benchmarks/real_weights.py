"""Train SmolLM2-135M on 96 short Python functions with odd names, and draw docs/smollm2.svg.

OMP_NUM_THREADS=1 python benchmarks/real_weights.py --runs FOLDER --kinds auto grpo --seeds 0 1 2

A run has 20 steps of 4 problems x 8 rollouts on PyTorch, and is not repeated if FOLDER already holds it; figures of
other runs are kept. The 36 held-out problems, of which 24 have operations that are never trained, are scored before and
after. Without `--runs` it only draws what docs/figures/real_weights.json holds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from reporting import machine, write_json

from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.report.svg import Series, line_chart

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
STORE = DOCS / "figures" / "real_weights.json"
STEPS, PROBLEMS, GROUP_SIZE = 20, 4, 8
SETTINGS = (
    f"rollout.problems_per_step={PROBLEMS}",
    f"rollout.group_size={GROUP_SIZE}",
    "model.adapter.layers=-1",
    "train.eval_every=0",
    "train.probe=false",
    "log.teacher_answers=0",
)
LABELS = {"auto": "auto (the default)", "sdpo": "SDPO", "grpo": "GRPO"}
SMOOTHED = 4  # steps: every batch has other problems


def main() -> None:
    """Run what is missing, keep its figures, draw the chart and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--kinds", nargs="*", default=["auto", "grpo"], choices=[*LABELS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    if options.runs:
        asked = [(kind, seed) for seed in options.seeds for kind in options.kinds]
        others = [run for run in stored() if (run["kind"], run["seed"]) not in asked]
        runs = [*others, *(found(options.runs / f"{kind}-{seed}", kind, seed) for kind, seed in asked)]
        runs.sort(key=lambda run: (run["kind"], run["seed"]))
        write_json(STORE, {"machine": machine(), "runs": runs})
    runs = stored()
    (DOCS / "smollm2.svg").write_text(chart(runs) + "\n", encoding="utf-8")
    print("\n".join(table(runs)))


def stored() -> list[dict[str, Any]]:
    """Return the runs in docs/figures."""
    return json.loads(STORE.read_text(encoding="utf-8"))["runs"]


def found(folder: Path, kind: str, seed: int) -> dict[str, Any]:
    """Return the figures of a run; it is trained if the folder does not hold it."""
    if not (folder / "README.md").exists():
        command = [sys.executable, "-m", "sdpo_cli.main", "train", "--model", "smollm2", "--task", "code"]
        command += ["--data", str(HERE / "functions.jsonl"), "--backend", "torch", "--objective", kind]
        command += ["--steps", str(STEPS), "--seed", str(seed), "--out", str(folder), "--plain"]
        subprocess.run([*command, *(part for each in SETTINGS for part in ("--set", each))], check=True)
    events = list(read_events(folder / "events.jsonl"))
    steps = [event for event in events if event["type"] == "step"]
    before, after = (event for event in events if event["type"] == "eval" and event.get("final"))
    shares = {name: [step.get(f"share/{name}") for step in steps] for name in ("demonstration", "feedback")}
    return {
        "kind": kind,
        "seed": seed,
        "before": [before[name] for name in ("score", "low", "high")],
        "after": [after[name] for name in ("score", "low", "high")],
        "success": [step["success/rate"] for step in steps],
        "shares": shares if kind == "auto" else {},
        "rollouts": steps[-1]["generations/total"],
    }


def chart(runs: Sequence[dict[str, Any]]) -> str:
    """Return the success of the training rollouts, smoothed, one line a run."""
    lines = []
    for position, kind in enumerate(dict.fromkeys(run["kind"] for run in runs)):
        for run in runs:
            if run["kind"] == kind:
                ys = [fmean(run["success"][max(0, at - SMOOTHED + 1) : at + 1]) for at in range(len(run["success"]))]
                xs = [PROBLEMS * GROUP_SIZE * (at + 1) for at in range(len(ys))]
                name = f"{LABELS[kind]}, seed {run['seed']}"
                lines.append(Series(name, xs[SMOOTHED - 1 :], ys[SMOOTHED - 1 :], colour=position, dash=run["seed"]))
    title = f"SmolLM2-135M, short Python functions: mean of {SMOOTHED} steps"
    return line_chart(lines, title=title, x_label="rollouts", y_label="success in training", y_range=(0.0, 1.0))


def table(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the held-out scores in percent, with 95 % intervals over problems."""
    lines = ["| objective | seed | held-out before | after | success in the last 5 steps |", "|---|---|---|---|---|"]
    for run in runs:
        before, after = (
            f"{100 * score:.1f} % ({100 * low:.0f} to {100 * high:.0f})"
            for score, low, high in (run["before"], run["after"])
        )
        late = f"{100 * fmean(run['success'][-5:]):.0f} %"
        lines.append(f"| {LABELS[run['kind']]} | {run['seed']} | {before} | {after} | {late} |")
    return lines


if __name__ == "__main__":
    main()
