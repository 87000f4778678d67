"""A teacher that knows more than a grader says, on the embedded model: `python benchmarks/privileged.py`.

Two parts, each with its controls and three seeds: the rows' own references as demonstrations (SDFT), and a person's
remarks (`sdpo coach`, the person simulated). Figures go to docs/figures/sdft.json; runs that it already holds are not
repeated, `--only sdft` and `--only coach` take a part, `--again` starts it over.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from learning import measure
from results import machine

from sdpo_mlx.coaching import Coaching, coaching_config, fingerprint
from sdpo_mlx.evaluate import Exam, evaluate, sampling_params
from sdpo_mlx.lessons import Lesson, Remark
from sdpo_mlx.run_folder import RunFolder
from sdpo_mlx.sampling import Sampler
from sdpo_mlx.setup import Setup, assemble
from sdpo_mlx.types import Problem

STORE = Path(__file__).resolve().parent.parent / "docs" / "figures" / "sdft.json"
SEEDS = (0, 1, 2)
TINY = ("model.name=tiny", "train.patience=0", "train.eval_every=5", "log.samples=0")
TASKS: Mapping[str, tuple[str, ...]] = {
    "tiny": ("task.name=tiny", "train.steps=15"),
    "tiny:mid": ("task.name=tiny:mid", "train.steps=30", "train.eval_every=10"),
}
SDFT = ("teacher.demonstration=dataset", "teacher.feedback=false")


def shuffled(setup: Setup) -> None:
    """The control: every training problem with the reference of another one."""
    rows = setup.task.problems("train")
    train = [replace(problem, reference=rows[i - 1].reference) for i, problem in enumerate(rows)]
    held_out = setup.task.problems("held_out")
    setup.task.problems = lambda split: train if split == "train" else held_out  # type: ignore[method-assign]


Arm = tuple[str, tuple[str, ...], Callable[[Setup], None]]
ARMS: tuple[Arm, ...] = (
    ("SDFT: the row's reference, no feedback", SDFT, lambda _: None),
    ("SDFT with the reverse KL", (*SDFT, "objective.alpha=1.0"), lambda _: None),
    ("SDPO: siblings and feedback", (), lambda _: None),
    ("control: the reference of another problem", SDFT, shuffled),
    (
        "control: neither reference nor feedback",
        ("teacher.demonstration=off", "teacher.feedback=false"),
        lambda _: None,
    ),
)


# One line a remark: the words in which the embedded model learned to read feedback, the first fault alone.
COACH = ("task.name=tiny", "task.feedback=first_error", "log.samples=0")
LESSONS, EVERY = 120, 30
Person = Callable[[Remark, Remark], Remark]  # the true remark, the last true one about another answer -> what is said
PERSONS: tuple[tuple[str, Person, tuple[str, ...]], ...] = (
    ("a person who names the first wrong line and marks what is right", lambda true, _last: true, ()),
    ("only the lines, no marks", lambda true, _last: Remark(true.text), ()),
    ("only the marks, no lines", lambda true, _last: Remark(good=true.good), ()),
    ("control: lines about another answer, no marks", lambda true, last: Remark(last.text if true.text else ""), ()),
    ("control: only `This is wrong.`, no marks", lambda true, _last: Remark("This is wrong." if true.text else ""), ()),
    ("control: no word", lambda _true, _last: Remark(), ()),
    ("lines and marks at the whole training rate", lambda true, _last: true, ("train.learning_rate=5e-3",)),
)


def main() -> None:
    """Run what is missing, keep it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("sdft", "coach"))
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    store: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {"machine": machine(), "runs": []}
    if options.again:
        store["runs"] = [run for run in store["runs"] if options.only not in (None, run["part"])]
    for part, work in (("sdft", sdft), ("coach", coach)):
        if options.only in (None, part):
            work(store)
    print(table(store["runs"]))


def sdft(store: dict[str, Any]) -> None:
    """Each arm on each task."""
    for task, settings in TASKS.items():
        for label, extra, change in ARMS:
            for seed in SEEDS:
                once(
                    store,
                    {"part": "sdft", "task": task, "label": label, "seed": seed},
                    (*TINY, *settings, *extra),
                    change,
                )


def coach(store: dict[str, Any]) -> None:
    """Each person at work on the embedded task, one answer and one line at a time."""
    for label, person, extra in PERSONS:
        for seed in SEEDS:
            key = {"part": "coach", "task": "tiny", "label": label, "seed": seed}
            if not held(store, key):
                keep(store, {**key, **coached(person, seed, extra)})


def coached(person: Person, seed: int, extra: tuple[str, ...]) -> dict[str, Any]:
    """A session of `LESSONS` lessons by `sdpo coach`'s own parts, and the held-out score along the way."""
    settings = [f"train.seed={seed}", *COACH, *extra]
    setup, begun = assemble(coaching_config("tiny", settings, {})), time.perf_counter()
    sampler, heard = Sampler(setup.task.problems("train"), 1, seed), Counter[str]()
    curve = [[0, 0, score(setup)]]
    with tempfile.TemporaryDirectory() as folder, RunFolder.open(Path(folder, "coach")) as place:
        coaching = Coaching(setup, place)
        start, last = coaching.start, Remark()
        for step in range(LESSONS):
            problem = sampler.batch(step)[0]
            rollouts = coaching.ask(problem)
            true = remark_of(setup, problem, rollouts[0].text)
            said, last = person(true, last), true if true.text else last
            heard["good" if said.good else "remark" if said.text else "nothing"] += 1
            coaching.teach(Lesson(problem, rollouts, (said,)))
            if (step + 1) % EVERY == 0:
                curve.append([step + 1, step + 1, score(setup)])
        coaching.close()
        changed = fingerprint(setup.policy.state()["student"]) != start
    kept = {"before": curve[0][2], "after": curve[-1][2], "curve": curve, "changed": changed, "heard": dict(heard)}
    return {**kept, "settings": settings, "seconds": round(time.perf_counter() - begun, 1)}


def remark_of(setup: Setup, problem: Problem, answer: str) -> Remark:
    """What a person who knows the library would say in one line: the first wrong line, and what it should be."""
    verdict = setup.task.grade(problem, answer)
    return Remark(good=True) if verdict.success else Remark(verdict.text)


def score(setup: Setup) -> float:
    """Share of right answers to the held-out problems, always on the same seeds."""
    sampling = sampling_params(setup.cfg.eval, setup.cfg.rollout, setup.chat)
    exam = Exam(setup.task.problems("held_out"), sampling, setup.cfg.eval.samples, setup.cfg.train.seed)
    return evaluate(setup.policy, setup.task, setup.chat, exam).score


def held(store: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Whether a run was measured already."""
    return any(all(run[name] == value for name, value in key.items()) for run in store["runs"])


def once(
    store: dict[str, Any], key: Mapping[str, Any], settings: tuple[str, ...], change: Callable[[Setup], None]
) -> None:
    """One training run, kept at once."""
    if held(store, key):
        return
    found = measure(key["label"], settings, key["seed"], change=change)
    curve = [[step, generations, score] for step, generations, score, _, _ in found.curve]
    kept = {"before": curve[0][2], "after": curve[-1][2], "curve": curve, "changed": found.changed}
    keep(store, {**key, **kept, "settings": list(settings), "seconds": round(found.seconds, 1)})


def keep(store: dict[str, Any], run: Mapping[str, Any]) -> None:
    """Write the figures after every run, so that nothing is measured twice."""
    store["runs"].append(run)
    STORE.parent.mkdir(parents=True, exist_ok=True)
    STORE.write_text(json.dumps(store, indent=1) + "\n")
    print(f"{run['task']} | {run['label']} | seed {run['seed']}: {run['before']:.2f} -> {run['after']:.2f}", flush=True)


def table(runs: list[dict[str, Any]]) -> str:
    """Held-out success before and after, mean and range over the seeds."""
    lines = ["| part | task | teacher | before | after (range) |", "|---|---|---|---|---|"]
    for part, task, label in dict.fromkeys((run["part"], run["task"], run["label"]) for run in runs):
        chosen = [run for run in runs if (run["part"], run["task"], run["label"]) == (part, task, label)]
        before, after = ([run[name] for run in chosen] for name in ("before", "after"))
        same = "" if any(run["changed"] for run in chosen) else "; no byte changed"
        spread = f"{mean(after):.2f} ({min(after):.2f} to {max(after):.2f}){same}"
        lines.append(f"| {part} | {task} | {label} | {mean(before):.2f} | {spread} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
