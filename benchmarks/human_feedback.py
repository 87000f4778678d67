"""A teacher that knows more than a grader says, on the embedded model: `python benchmarks/human_feedback.py`.

Each part with its controls: the rows' own references as demonstrations (SDFT), a person's remarks (`sdpo coach`, the
person simulated), and the same about whole episodes: of the embedded game (`coach-game`), and of the embedded task
with a second try (`coach-tries`); three seeds, the episodes one.
Figures go to docs/figures/sdft.json; runs that it already holds are not repeated, `--only PART` takes a part,
`--again` starts it over.
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
from results import machine

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
    """The control: every training problem with the reference of another one."""
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


# One line a remark: the words in which the embedded model learned to read feedback, the first fault alone.
COACH = ("log.samples=0",)
Person = Callable[
    [HumanFeedback, HumanFeedback], HumanFeedback
]  # the true remark, the last true one about another answer -> what is said
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
    """The embedded task as an episode: the environment says only that it is wrong, and the model tries once more."""
    task: Any = setup.task

    def reply(problem: Problem, answers: Sequence[str]) -> str | None:
        if task.grade(problem, answers[-1]).success:
            return None
        return teacher_messages(problem.messages, None, "This is wrong.", None, TeacherConfig())[-1]["content"]

    task.max_turns, task.reply = 2, reply


@dataclass(frozen=True)
class Lessons:
    """What a simulated person teaches, and who is tried; `every` counts lessons between two scores."""

    task: str
    settings: tuple[str, ...]
    count: int
    every: int
    persons: tuple[tuple[str, Person, tuple[str, ...]], ...]
    seeds: tuple[int, ...] = SEEDS
    change: Callable[[Components], None] = lambda _: None


# In the game the environment's replies stay whole, while the person names one line of the last answer.
COURSES: Mapping[str, Lessons] = {
    "coach": Lessons("tiny", ("task.feedback=first_error", *COACH), 120, 30, PERSONS),
    "coach-game": Lessons("game:library", COACH, 60, 30, PERSONS[:6], (0,)),
    "coach-tries": Lessons("tiny", COACH, 60, 30, PERSONS[:6], (0,), two_tries),
}


def main() -> None:
    """Run what is missing, keep it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("sdft", *COURSES))
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    store: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {"machine": machine(), "runs": []}
    if options.again:
        store["runs"] = [run for run in store["runs"] if options.only not in (None, run["part"])]
    if options.only in (None, "sdft"):
        sdft(store)
    for part in COURSES:
        if options.only in (None, part):
            coach(store, part)
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


def coach(store: dict[str, Any], part: str) -> None:
    """Each person at work on the embedded task or the game, one answer or episode and one line at a time."""
    course = COURSES[part]
    for seed in course.seeds:
        for label, person, extra in course.persons:
            key = {"part": part, "task": course.task, "label": label, "seed": seed}
            if not held(store, key):
                keep(store, {**key, **coached(course, person, seed, extra)})


def coached(course: Lessons, person: Person, seed: int, extra: tuple[str, ...]) -> dict[str, Any]:
    """A session by `sdpo coach`'s own parts, and the held-out score along the way."""
    settings = [f"train.seed={seed}", f"task.name={course.task}", *course.settings, *extra]
    setup, begun = build_components(coaching_config("tiny", settings, {})), time.perf_counter()
    course.change(setup)
    sampler, heard = Sampler(setup.task.problems("train"), 1, seed), Counter[str]()
    curve = [[0, 0, score(setup)]]
    with tempfile.TemporaryDirectory() as folder, RunFolder.open(Path(folder, "coach")) as place:
        coaching = Coaching(setup, place)
        start, last = coaching.start, HumanFeedback()
        for step in range(course.count):
            problem = sampler.batch(step)[0]
            rollouts = answers(coaching, problem)
            true = remark_of(problem, rollouts[0].text)
            said, last = person(true, last), true if true.text else last
            heard["good" if said.good else "remark" if said.text else "nothing"] += 1
            coaching.learn(Lesson(problem, rollouts, (said,)))
            if (step + 1) % course.every == 0:
                curve.append([step + 1, step + 1, score(setup)])
        coaching.close()
        changed = fingerprint(setup.policy.state()["student"]) != start
    kept = {"before": curve[0][2], "after": curve[-1][2], "curve": curve, "changed": changed, "heard": dict(heard)}
    return {**kept, "settings": settings, "seconds": round(time.perf_counter() - begun, 1)}


def answers(coaching: Coaching, problem: Problem) -> tuple[Rollout, ...]:
    """One answer, or one episode where the environment replies."""
    if coaching.components.task.max_turns == 1:
        return coaching.sample(problem)
    group = coaching.sample_episodes(problem)
    if group is None:
        raise ValueError(f"{problem.id} does not fit")
    return group.rollouts


def remark_of(problem: Problem, answer: str) -> HumanFeedback:
    """What a person who knows the library would say in one line: the first wrong line, and what it should be."""
    hidden = problem.private
    library = hidden.get("library", LIBRARY)
    verdict = judge(hidden["operations"], hidden["inputs"], answer, library=library, mode="first_error")
    return HumanFeedback(good=True) if verdict.success else HumanFeedback(verdict.text)


def score(setup: Components) -> float:
    """Share of right answers to the held-out problems, always on the same seeds."""
    sampling = sampling_params(setup.cfg.eval, setup.cfg.rollout, setup.chat)
    exam = EvalSpec(setup.task.problems("held_out"), sampling, setup.cfg.eval.samples, setup.cfg.train.seed)
    return evaluate(setup.policy, setup.task, setup.chat, exam).score


def held(store: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Whether a run was measured already."""
    return any(all(run[name] == value for name, value in key.items()) for run in store["runs"])


def once(
    store: dict[str, Any], key: Mapping[str, Any], settings: tuple[str, ...], change: Callable[[Components], None]
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
