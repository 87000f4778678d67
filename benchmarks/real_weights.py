"""Train SmolLM2-135M on short Python functions with odd names, and draw docs/smollm2.svg.

OMP_NUM_THREADS=1 python benchmarks/real_weights.py --runs FOLDER --kinds auto grpo --seeds 0 1 2
OMP_NUM_THREADS=1 python benchmarks/real_weights.py --runs FOLDER --set hard --kinds auto --seeds 0 1 2

A run has 4 problems x 8 rollouts a step on PyTorch, and is not repeated if FOLDER already holds it; figures of other
runs are kept. The held-out problems are scored before and after: 36 of the easy set (functions.jsonl, 96 functions) and
26 of the hard one (functions.py), of which 24 and 16 have operations that are never trained. Without `--runs` it only
draws what docs/figures/real_weights.json holds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import functions
from reporting import machine, write_json

from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.report.svg import Series, line_chart

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
EASY = HERE / "functions.jsonl"
STORE = DOCS / "figures" / "real_weights.json"
PROBLEMS, GROUP_SIZE = 4, 8
SETTINGS = (
    f"rollout.problems_per_step={PROBLEMS}",
    f"rollout.group_size={GROUP_SIZE}",
    "model.adapter.layers=-1",
    "train.eval_every=0",
    "train.probe=false",
    "log.teacher_answers=0",
)
LABELS = {"auto": "auto (the default)", "sdpo": "SDPO", "grpo": "GRPO"}
CHARTED = [("easy", "auto"), ("easy", "grpo")]  # runs of 20 steps
SMOOTHED = 4  # steps: every batch has other problems


def main() -> None:
    """Run what is missing, keep its figures, draw the chart and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--set", choices=["easy", "hard"], default="easy", dest="problems")
    parser.add_argument("--kinds", nargs="*", default=["auto", "grpo"], choices=[*LABELS])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    if options.runs:
        keys = [Key(options.problems, kind, options.steps, seed) for seed in options.seeds for kind in options.kinds]
        others = [run for run in stored() if key(run) not in keys]
        runs = sorted([*others, *(found(options.runs, each) for each in keys)], key=key)
        write_json(STORE, {"machine": machine(), "runs": runs})
    runs = stored()
    (DOCS / "smollm2.svg").write_text(chart(runs) + "\n", encoding="utf-8")
    print("\n".join(table(runs)))


class Key(NamedTuple):
    """What identifies a run: the set of problems, the objective, the number of steps, the seed."""

    problems: str
    kind: str
    steps: int
    seed: int


def stored() -> list[dict[str, Any]]:
    """Return the runs in docs/figures."""
    return json.loads(STORE.read_text(encoding="utf-8"))["runs"]


def key(run: dict[str, Any]) -> Key:
    """Return what identifies a stored run."""
    return Key(*(run[name] for name in Key._fields))


def found(runs: Path, run: Key) -> dict[str, Any]:
    """Return the figures of a run; it is trained if the folder `runs` does not hold it."""
    folder = runs / "-".join(map(str, run))
    if not (folder / "README.md").exists():
        train(folder, run)
    events = list(read_events(folder / "events.jsonl"))
    steps = [event for event in events if event["type"] == "step"]
    before, after = (event for event in events if event["type"] == "eval" and event.get("final"))
    trained = {operation(row["id"]) for row in functions_of(run.problems) if row["split"] == "train"}
    scores: dict[bool, list[float]] = {True: [], False: []}
    for problem, rewards in after["rewards"].items():
        scores[operation(problem) in trained].append(fmean(rewards))
    shares = {name: [step.get(f"share/{name}") for step in steps] for name in ("demonstration", "feedback")}
    return {
        **run._asdict(),
        "before": [before[name] for name in ("score", "low", "high")],
        "after": [after[name] for name in ("score", "low", "high")],
        "after_by_operation": {"trained": fmean(scores[True]), "new": fmean(scores[False])},
        "success": [step["success/rate"] for step in steps],
        "shares": shares if run.kind == "auto" else {},
        "rollouts": steps[-1]["generations/total"],
    }


def functions_of(problems: str) -> list[dict[str, Any]]:
    """Return the rows of a set."""
    if problems == "hard":
        return [*functions.rows(*functions.SETS["hard"])]
    return [json.loads(line) for line in EASY.read_text(encoding="utf-8").splitlines()]


def operation(problem: str) -> str:
    """Return what a problem's id says of its operation: `p3` of `p3-0`."""
    return problem.rpartition("-")[0]


def train(folder: Path, run: Key) -> None:
    """Train in a process of its own."""
    data = EASY
    if run.problems == "hard":
        data = folder.parent / "hard.jsonl"
        folder.parent.mkdir(parents=True, exist_ok=True)
        functions.write(data, "hard")
    command = [sys.executable, "-m", "sdpo_cli.main", "train", "--model", "smollm2", "--task", "code"]
    command += ["--data", str(data), "--backend", "torch", "--objective", run.kind]
    command += ["--steps", str(run.steps), "--seed", str(run.seed), "--out", str(folder), "--plain"]
    subprocess.run([*command, *(part for each in SETTINGS for part in ("--set", each))], check=True)


def chart(runs: Sequence[dict[str, Any]]) -> str:
    """Return the success of the training rollouts, smoothed, one line a run."""
    lines = []
    for position, shown in enumerate(CHARTED):
        for run in runs:
            if (run["problems"], run["kind"], run["steps"]) == (*shown, 20):
                ys = [fmean(run["success"][max(0, at - SMOOTHED + 1) : at + 1]) for at in range(len(run["success"]))]
                xs = [PROBLEMS * GROUP_SIZE * (at + 1) for at in range(len(ys))]
                name = f"{LABELS[run['kind']]}, seed {run['seed']}"
                lines.append(Series(name, xs[SMOOTHED - 1 :], ys[SMOOTHED - 1 :], colour=position, dash=run["seed"]))
    title = f"SmolLM2-135M, short Python functions: mean of {SMOOTHED} steps"
    return line_chart(lines, title=title, x_label="rollouts", y_label="success in training", y_range=(0.0, 1.0))


def table(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the held-out scores in percent, with 95 % intervals over problems."""
    head = [
        "functions",
        "objective",
        "rollouts",
        "seed",
        "held-out before",
        "after",
        "of trained operations",
        "of new ones",
    ]
    lines = [f"| {' | '.join(head)} | success in the last 5 steps |", "|---" * (len(head) + 1) + "|"]
    for run in runs:
        before, after = (
            f"{100 * score:.1f} % ({100 * low:.0f} to {100 * high:.0f})"
            for score, low, high in (run["before"], run["after"])
        )
        late = f"{100 * fmean(run['success'][-5:]):.0f} %"
        start = f"| {run['problems']} | {LABELS[run['kind']]} | {run['rollouts']} | {run['seed']}"
        parts = run.get("after_by_operation")  # the first runs did not keep it
        split = f"{100 * parts['trained']:.0f} % | {100 * parts['new']:.0f} %" if parts else "– | –"
        lines.append(f"{start} | {before} | {after} | {split} | {late} |")
    return lines


if __name__ == "__main__":
    main()
