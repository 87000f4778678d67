"""Train SmolLM2 on Python problems with SDPO, GRPO and hybrid, and SDPO on PyTorch; score before and after.

All runs have the same budget. Finished run folders in runs/results/ are not trained again. The adapter of the last step
and the base model sample SAMPLES rollouts for every held-out problem. Adds to docs/results.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from reporting import machine, write_json
from results import DOCS, STORE

from sdpo_mlx.config.resolve import resolve
from sdpo_mlx.core.statistics import clustered, paired
from sdpo_mlx.evaluation.spec import held_out, sampling_params
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.rl.rollouts import rollout_seeds, sample
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.teacher import teacher_messages
from sdpo_mlx.types import Problem, RolloutGroup

RUNS = DOCS.parent / "runs" / "results"
SAMPLES = 8
ON_TORCH = ["--objective", "sdpo", "--backend", "torch", "--set", "model.device=cpu"]
KINDS = {**{kind: ["--objective", kind] for kind in ("sdpo", "grpo", "hybrid")}, "sdpo-torch": ON_TORCH}


def main() -> None:
    """Train missing runs, score all, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args()
    setup = build_components(resolve(None, [], {"model.name": "smollm2", "task.name": "code:easy"}).config)
    base = setup.policy.state()["student"]
    rows = [{"label": "base", **_score(setup)}]
    for kind in options.kinds:
        folder = RUNS / f"code-{kind}"
        command = ["train", "--model", "smollm2", "--task", "code:easy", *KINDS[kind], "--steps"]
        if not _finished(folder, options.steps):
            # One held-out problem is enough: evaluations do not change a run, and all problems are scored below
            short = ["--set", "eval.problems=1", "--out", str(folder)]
            run = [sys.executable, "-m", "sdpo_cli.main", *command, str(options.steps), *short]
            subprocess.run(run, check=True)
        loaded = checkpoint.load(folder / "checkpoints")
        assert loaded is not None
        setup.policy.load_student(loaded.state["student"])
        rows.append({"label": kind, **_training(folder), **_score(setup)})
    for row in rows[1:]:
        row["difference"] = _difference(rows[0]["rewards"], row["rewards"])
    store = json.loads(STORE.read_text())
    setup.policy.load_student(base)
    before = store.get("code", {"rows": []})
    scored = {row["label"]: row for row in [*before["rows"], *rows]}  # rows of other kinds stay
    teacher = before["teacher"] if len(options.kinds) < len(KINDS) and "teacher" in before else _teacher(setup)
    store["code"] = {"rows": [*scored.values()], "teacher": teacher, "machine": machine(), "samples": SAMPLES}
    write_json(STORE, store, indent=0)


def _finished(folder: Path, steps: int) -> bool:
    return folder.exists() and max(checkpoint.steps(folder / "checkpoints"), default=0) >= steps


def _score(setup: Components) -> dict[str, Any]:
    """Return held-out success with its interval, and the kinds of grades."""
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


def _teacher(setup: Components) -> dict[str, float]:
    """Return the success of the base model on training problems, without and with a teacher context.

    The feedback is that on up to two of its own failures; the solution is the reference solution.
    """
    problems, cfg = setup.task.problems("train"), setup.cfg
    sampling = sampling_params(cfg.eval, cfg.rollout, setup.chat)

    def sampled(questions: list[Problem], n: int) -> list[RolloutGroup]:
        seeds = rollout_seeds("code-teacher", 0, 0, questions, n)
        return list(sample(setup.policy, setup.task, setup.chat, questions, sampling, seeds).groups)

    def with_context(problem: Problem, number: int, solution: str | None, feedback: str | None) -> Problem:
        messages = teacher_messages(problem.messages, solution, feedback, None, cfg.teacher)
        return replace(problem, id=f"{problem.id}#{number}", messages=messages)

    alone = sampled(list(problems), 4)
    failed = [
        with_context(group.problem, number, None, feedback.text)
        for group in alone
        for number, feedback in enumerate([f for f in group.feedback if not f.success][:2])
    ]
    solved = [with_context(p, 0, f"```python\n{_reference(p)}```", None) for p in problems]
    shares = {"alone": alone, "with feedback": sampled(failed, 1), "with a solution": sampled(solved, 2)}
    return {name: sum(group.pass_rate for group in groups) / len(groups) for name, groups in shares.items()}


def _reference(problem: Problem) -> str:
    text = (DOCS.parent / "tests/data/code_solutions.jsonl").read_text(encoding="utf-8")
    found = {row["slug"]: row["source"] for row in map(json.loads, text.split("\n")[:-1]) if row["kind"] == "right"}
    return str(found[problem.id.removeprefix("code/")])


def _training(folder: Path) -> dict[str, Any]:
    """Return the success of the training rollouts per step, and the time."""
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
