"""Measure reference answers and human feedback on the embedded model: `python benchmarks/human_feedback.py`.

Parts, each with its controls: `sdft`, the rows' references as demonstrations; `coach`, the feedback of a simulated
person; `coach-game`, the same on whole episodes of the embedded game; `coach-tries`, the same on the embedded task with
a second try. Three seeds; episodes one. Figures go to docs/figures/sdft.json. Stored runs are not repeated;
`--only PART` runs one part, `--again` starts it over.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from learning import measure
from reporting import machine, markdown_table, write_json

from sdpo_mlx.config import TeacherConfig
from sdpo_mlx.evaluation.evaluate import evaluate
from sdpo_mlx.evaluation.spec import EvalSpec, sampling_params
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.rl.rollouts import Sampler
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.tasks.tiny.library import LIBRARY, judge
from sdpo_mlx.teacher import teacher_messages
from sdpo_mlx.training.coaching import Coaching, coaching_config, fingerprint
from sdpo_mlx.training.lessons import HumanFeedback, Lesson
from sdpo_mlx.types import Problem, Rollout

STORE = Path(__file__).resolve().parent.parent / "docs" / "figures" / "sdft.json"
SEEDS = (0, 1, 2)
TINY = ("model.name=tiny", "train.patience=0", "train.eval_every=5", "log.samples=0")
TASKS: Mapping[str, tuple[str, ...]] = {
    "tiny": ("task.name=tiny", "train.steps=15"),
    "tiny:mid": ("task.name=tiny:mid", "train.steps=30", "train.eval_every=10"),
}
SDFT = ("teacher.demonstration=dataset", "teacher.feedback=false")


def shuffled(setup: Components) -> None:
    """Control: give every training problem the reference of another one."""
    rows = setup.task.problems("train")
    train = [replace(problem, reference=rows[i - 1].reference) for i, problem in enumerate(rows)]
    held_out = setup.task.problems("held_out")
    setup.task.problems = lambda split: train if split == "train" else held_out  # type: ignore[method-assign]


Arm = tuple[str, tuple[str, ...], Callable[[Components], None]]
ARMS: tuple[Arm, ...] = (
    ("SDFT: the row's reference, no feedback", SDFT, lambda _: None),
    ("SDFT with the reverse KL", (*SDFT, "objective.alpha=1.0"), lambda _: None),
    ("SDPO: demonstrations and feedback", (), lambda _: None),
    ("control: the reference of another problem", SDFT, shuffled),
    (
        "control: neither reference nor feedback",
        ("teacher.demonstration=off", "teacher.feedback=false"),
        lambda _: None,
    ),
)


# One line in the wording of the feedback that the embedded model was pretrained on: the first error only
COACH = ("log.samples=0",)
# (true feedback, last true feedback on another rollout) -> the feedback given
Person = Callable[[HumanFeedback, HumanFeedback], HumanFeedback]
PERSONS: tuple[tuple[str, Person, tuple[str, ...]], ...] = (
    ("a person who names the first wrong line and marks what is right", lambda true, _last: true, ()),
    ("only lines, no marks", lambda true, _last: HumanFeedback(true.text), ()),
    ("only marks, no lines", lambda true, _last: HumanFeedback(good=true.good), ()),
    (
        "control: lines about another answer, no marks",
        lambda true, last: HumanFeedback(last.text if true.text else ""),
        (),
    ),
    (
        "control: only `This is wrong.`, no marks",
        lambda true, _last: HumanFeedback("This is wrong." if true.text else ""),
        (),
    ),
    ("control: no feedback", lambda _true, _last: HumanFeedback(), ()),
    ("lines and marks at the full training rate", lambda true, _last: true, ("train.learning_rate=5e-3",)),
)


def two_tries(setup: Components) -> None:
    """Make the embedded task an episode: the environment replies only `This is wrong.`, and the model tries again."""
    task: Any = setup.task

    def reply(problem: Problem, answers: Sequence[str]) -> str | None:
        if task.grade(problem, answers[-1]).success:
            return None
        return teacher_messages(problem.messages, None, "This is wrong.", None, TeacherConfig())[-1]["content"]

    task.max_turns, task.reply = 2, reply


@dataclass(frozen=True)
class CoachingPlan:
    """One experiment with simulated persons; `every` is the number of lessons between two scores."""

    task: str
    settings: tuple[str, ...]
    count: int
    every: int
    persons: tuple[tuple[str, Person, tuple[str, ...]], ...]
    seeds: tuple[int, ...] = SEEDS
    change: Callable[[Components], None] = lambda _: None


# In the game the environment's replies stay complete; the person comments on one line of the last answer
PLANS: Mapping[str, CoachingPlan] = {
    "coach": CoachingPlan("tiny", ("task.feedback=first_error", *COACH), 120, 30, PERSONS),
    "coach-game": CoachingPlan("game:library", COACH, 60, 30, PERSONS[:6], (0,)),
    "coach-tries": CoachingPlan("tiny", COACH, 60, 30, PERSONS[:6], (0,), two_tries),
}


def main() -> None:
    """Run missing experiments, store them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("sdft", *PLANS))
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    store: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {"machine": machine(), "runs": []}
    if options.again:
        store["runs"] = [run for run in store["runs"] if options.only not in (None, run["part"])]
    if options.only in (None, "sdft"):
        sdft(store)
    for part in PLANS:
        if options.only in (None, part):
            coach(store, part)
    print(table(store["runs"]))


def sdft(store: dict[str, Any]) -> None:
    """Run each arm on each task."""
    for task, settings in TASKS.items():
        for label, extra, change in ARMS:
            for seed in SEEDS:
                once(
                    store,
                    {"part": "sdft", "task": task, "label": label, "seed": seed},
                    (*TINY, *settings, *extra),
                    change,
                )


def coach(store: dict[str, Any], part: str) -> None:
    """Run each person on the plan's task, one rollout or episode and one line at a time."""
    plan = PLANS[part]
    for seed in plan.seeds:
        for label, person, extra in plan.persons:
            key = {"part": part, "task": plan.task, "label": label, "seed": seed}
            if not stored(store, key):
                save(store, {**key, **coached(plan, person, seed, extra)})


def coached(plan: CoachingPlan, person: Person, seed: int, extra: tuple[str, ...]) -> dict[str, Any]:
    """Run a session with the code of `sdpo coach`; return held-out scores along the way."""
    settings = [f"train.seed={seed}", f"task.name={plan.task}", *plan.settings, *extra]
    setup, begun = build_components(coaching_config("tiny", settings, {})), time.perf_counter()
    plan.change(setup)
    sampler, counts = Sampler(setup.task.problems("train"), 1, seed), Counter[str]()
    curve = [[0, 0, score(setup)]]
    with tempfile.TemporaryDirectory() as folder, RunFolder.open(Path(folder, "coach")) as place:
        coaching = Coaching(setup, place)
        start, last = coaching.start, HumanFeedback()
        for step in range(plan.count):
            problem = sampler.batch(step)[0]
            rollouts = answers(coaching, problem)
            true = feedback_of(problem, rollouts[0].text)
            given, last = person(true, last), true if true.text else last
            counts["good" if given.good else "remark" if given.text else "nothing"] += 1
            coaching.learn(Lesson(problem, rollouts, (given,)))
            if (step + 1) % plan.every == 0:
                curve.append([step + 1, step + 1, score(setup)])
        coaching.close()
        changed = fingerprint(setup.policy.state()["student"]) != start
    kept = {"before": curve[0][2], "after": curve[-1][2], "curve": curve, "changed": changed, "heard": dict(counts)}
    return {**kept, "settings": settings, "seconds": round(time.perf_counter() - begun, 1)}


def answers(coaching: Coaching, problem: Problem) -> tuple[Rollout, ...]:
    """Sample one rollout, or one episode if the environment replies."""
    if coaching.components.task.max_turns == 1:
        return coaching.sample(problem)
    group = coaching.sample_episodes(problem)
    if group is None:
        raise ValueError(f"{problem.id} does not fit")
    return group.rollouts


def feedback_of(problem: Problem, answer: str) -> HumanFeedback:
    """Return the feedback of a person who knows the library: the first wrong line, and what it should be."""
    hidden = problem.private
    library = hidden.get("library", LIBRARY)
    verdict = judge(hidden["operations"], hidden["inputs"], answer, library=library, mode="first_error")
    return HumanFeedback(good=True) if verdict.success else HumanFeedback(verdict.text)


def score(setup: Components) -> float:
    """Return the success rate on held-out problems, always with the same seeds."""
    sampling = sampling_params(setup.cfg.eval, setup.cfg.rollout, setup.chat)
    spec = EvalSpec(setup.task.problems("held_out"), sampling, setup.cfg.eval.samples, setup.cfg.train.seed)
    return evaluate(setup.policy, setup.task, setup.chat, spec).score


def stored(store: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Return whether a run is stored already."""
    return any(all(run[name] == value for name, value in key.items()) for run in store["runs"])


def once(
    store: dict[str, Any], key: Mapping[str, Any], settings: tuple[str, ...], change: Callable[[Components], None]
) -> None:
    """Run one training and store it."""
    if stored(store, key):
        return
    found = measure(key["label"], settings, key["seed"], change=change)
    curve = [[step, generations, score] for step, generations, score, _, _ in found.curve]
    kept = {"before": curve[0][2], "after": curve[-1][2], "curve": curve, "changed": found.changed}
    save(store, {**key, **kept, "settings": list(settings), "seconds": round(found.seconds, 1)})


def save(store: dict[str, Any], run: Mapping[str, Any]) -> None:
    """Store the figures after every run, so that nothing is measured twice."""
    store["runs"].append(run)
    STORE.parent.mkdir(parents=True, exist_ok=True)
    write_json(STORE, store)
    print(f"{run['task']} | {run['label']} | seed {run['seed']}: {run['before']:.2f} -> {run['after']:.2f}", flush=True)


def table(runs: list[dict[str, Any]]) -> str:
    """Return a table of held-out success before and after: mean and range of the seeds."""
    rows = []
    for part, task, label in dict.fromkeys((run["part"], run["task"], run["label"]) for run in runs):
        chosen = [run for run in runs if (run["part"], run["task"], run["label"]) == (part, task, label)]
        before, after = ([run[name] for run in chosen] for name in ("before", "after"))
        unchanged = "" if any(run["changed"] for run in chosen) else "; no byte changed"
        spread = f"{mean(after):.2f} ({min(after):.2f} to {max(after):.2f}){unchanged}"
        rows.append([part, task, label, f"{mean(before):.2f}", spread])
    return markdown_table(["part", "task", "teacher", "before", "after (range)"], rows)


if __name__ == "__main__":
    main()
