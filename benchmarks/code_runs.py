"""SmolLM2 on Python problems: SDPO, GRPO and hybrid with the same budget, SDPO on both backends; before and after.

Run folders lie in runs/results/; what is finished there is not trained again. Each adapter of the last step
answers every held-out problem SAMPLES times; so does the untouched model. Adds to docs/results.json.
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

from results import DOCS, STORE, machine

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
    """Train what is missing, score everything, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args()
    setup = build_components(resolve(None, [], {"model.name": "smollm2", "task.name": "code:easy"}).config)
    untouched = setup.policy.state()["student"]
    rows = [{"label": "base", **_score(setup)}]
    for kind in options.kinds:
        folder = RUNS / f"code-{kind}"
        command = ["train", "--model", "smollm2", "--task", "code:easy", *KINDS[kind], "--steps"]
        if not _finished(folder, options.steps):
            # One held-out problem: a run's own evaluations change nothing in it, and all of them are answered below.
            brief = ["--set", "eval.problems=1", "--out", str(folder)]
            run = [sys.executable, "-m", "sdpo_cli.main", *command, str(options.steps), *brief]
            subprocess.run(run, check=True)
        loaded = checkpoint.load(folder / "checkpoints")
        assert loaded is not None
        setup.policy.load_student(loaded.state["student"])
        rows.append({"label": kind, **_training(folder), **_score(setup)})
    for row in rows[1:]:
        row["difference"] = _difference(rows[0]["rewards"], row["rewards"])
    store = json.loads(STORE.read_text())
    setup.policy.load_student(untouched)
    before = store.get("code", {"rows": []})
    scored = {row["label"]: row for row in [*before["rows"], *rows]}  # what was not asked for stays as it was
    teacher = before["teacher"] if len(options.kinds) < len(KINDS) and "teacher" in before else _teacher(setup)
    store["code"] = {"rows": [*scored.values()], "teacher": teacher, "machine": machine(), "samples": SAMPLES}
    STORE.write_text(json.dumps(store, indent=0) + "\n")


def _finished(folder: Path, steps: int) -> bool:
    return folder.exists() and max(checkpoint.steps(folder / "checkpoints"), default=0) >= steps


def _score(setup: Components) -> dict[str, Any]:
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


def _teacher(setup: Components) -> dict[str, float]:
    """Is the self-teacher better than the student? Success of the untouched model alone and with contexts.

    Training problems; the feedback is that on up to two failures of its own, the solution our reference.
    """
    problems, cfg = setup.task.problems("train"), setup.cfg
    sampling = sampling_params(cfg.eval, cfg.rollout, setup.chat)

    def asked(questions: list[Problem], n: int) -> list[RolloutGroup]:
        seeds = rollout_seeds("code-teacher", 0, 0, questions, n)
        return list(sample(setup.policy, setup.task, setup.chat, questions, sampling, seeds).groups)

    def shown(problem: Problem, number: int, solution: str | None, feedback: str | None) -> Problem:
        messages = teacher_messages(problem.messages, solution, feedback, None, cfg.teacher)
        return replace(problem, id=f"{problem.id}#{number}", messages=messages)

    alone = asked(list(problems), 4)
    told = [
        shown(group.problem, number, None, said.text)
        for group in alone
        for number, said in enumerate([f for f in group.feedback if not f.success][:2])
    ]
    solved = [shown(p, 0, f"```python\n{_reference(p)}```", None) for p in problems]
    shares = {"alone": alone, "with feedback": asked(told, 1), "with a solution": asked(solved, 2)}
    return {name: sum(group.pass_rate for group in groups) / len(groups) for name, groups in shares.items()}


def _reference(problem: Problem) -> str:
    text = (DOCS.parent / "tests/data/code_solutions.jsonl").read_text(encoding="utf-8")
    found = {row["slug"]: row["source"] for row in map(json.loads, text.split("\n")[:-1]) if row["kind"] == "right"}
    return str(found[problem.id.removeprefix("code/")])


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
