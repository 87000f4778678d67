"""Check whether a task is fit to train on: run its grader on fake answers and report oddities.

A fault makes training useless or wrong; a hint is worth a look. Nothing here needs a model.
"""

from __future__ import annotations

import re
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sdpo_mlx.core.text import FEEDBACK_LIMIT, shorten_middle
from sdpo_mlx.tasks.base import SPLITS, Split, Task
from sdpo_mlx.tasks.dataset import HELD_OUT_EVERY
from sdpo_mlx.tasks.grading import grade
from sdpo_mlx.types import Feedback, Problem

PROBLEMS = 4  # of each split, spread over it
SLOW_SECONDS = 2.0  # a verdict slower than this holds up the sampling it overlaps with
HANG_SECONDS = 20.0
LEAST_TELLING = 4  # characters from which a private value in the feedback is no accident
_SHOWN = 24  # characters of an answer that is quoted
_DIGIT = re.compile(r"[0-9]")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


@dataclass(frozen=True)
class Oddity:
    """One finding, and how to fix it."""

    level: Literal["fault", "hint"]
    name: str
    what: str
    fix: str


@dataclass(frozen=True)
class Trial:
    """One fake answer graded: twice, for its determinism."""

    problem: Problem
    answer: str
    first: Feedback
    second: Feedback
    seconds: float
    known_right: bool = False


@dataclass(frozen=True)
class Report:
    """All gradings and findings."""

    counts: Mapping[str, int]
    trials: Sequence[Trial]
    oddities: list[Oddity] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No fault; hints do not count."""
        return all(each.level != "fault" for each in self.oddities)


def check_task(task: Task) -> Report:
    """Check the problems of both splits and grade fake answers to a few; grader errors become findings."""
    splits = {split: list(task.problems(split)) for split in SPLITS}
    steps = {split: max(1, len(problems) // PROBLEMS) for split, problems in splits.items()}
    chosen = [problem for split in SPLITS for problem in splits[split][:: steps[split]][:PROBLEMS]]
    trials, hung = _try(task, chosen)
    report = Report({split: len(problems) for split, problems in splits.items()}, trials)
    report.oddities.extend(_of_problems(task, splits))
    report.oddities.extend(hung)
    for look in (_rewards, _texts, _leaks, _calls):
        report.oddities.extend(look(trials))
    return report


def fake_answers(problem: Problem) -> list[str]:
    """Answers nobody would accept; private values and the row's reference, some of which a good grader may accept."""
    question = problem.messages[-1]["content"]
    samples = ["", "I do not know.", "42", "yes", "```python\nprint(1)\n```", "\\boxed{7}", "<answer>A</answer>", "{}"]
    private = sorted(set(_leaves(problem.private)), key=len)[:12]
    reference = [problem.reference] if problem.reference else []
    return [*samples, "\x00\ud800 \u202e[bold]{x} %s", question[:2_000], "word " * 4_000, *private, *reference]


def _answers(task: Task, problem: Problem) -> list[tuple[str, bool]]:
    """Return answers to grade, each with whether it is the task's own right one: that, damaged copies, fake ones."""
    fake = [(answer, False) for answer in fake_answers(problem)]
    right = task.solution(problem)
    if right is None:
        return fake
    other_digits = _DIGIT.sub(lambda found: str((int(found[0]) + 1) % 10), right)
    damaged = (right[: len(right) // 2], right[1:], f"{right} and more", other_digits, right.swapcase())
    return [(right, True), *((each, False) for each in damaged if each != right), *fake]


def _try(task: Task, problems: Sequence[Problem]) -> tuple[list[Trial], list[Oddity]]:
    """Grade every fake answer twice, the second time in parallel; a grader that hangs ends the check."""
    trials: list[Trial] = []
    for problem, answer, right in ((each, *answer) for each in problems for answer in _answers(task, each)):
        begun = time.perf_counter()
        first = _in_time(task, problem, answer)
        if first is None:
            what = f"the grader took over {HANG_SECONDS:g} seconds on problem {problem.id}"
            return trials, [Oddity("fault", "hangs", what, "give what it waits for a time limit")]
        trials.append(Trial(problem, answer, first, first, time.perf_counter() - begun, right))
    with ThreadPoolExecutor(4) as pool:
        again = pool.map(lambda trial: _in_time(task, trial.problem, trial.answer) or trial.first, trials)
        return [replace(trial, second=second) for trial, second in zip(trials, again, strict=True)], []


def _in_time(task: Task, problem: Problem, answer: str) -> Feedback | None:
    """Return the grade, None if the grader hangs; its thread is abandoned."""
    found: list[Feedback] = []
    thread = threading.Thread(target=lambda: found.append(grade(task, problem, answer)), daemon=True)
    thread.start()
    thread.join(HANG_SECONDS)
    return found[0] if found else None


def _of_problems(task: Task, splits: Mapping[Split, Sequence[Problem]]) -> Iterator[Oddity]:
    train, held_out = splits["train"], splits["held_out"]
    if not train:
        yield Oddity("fault", "no_problems", "there are no training problems", "give rows whose split is train")
    if not held_out:
        fix = f"give {HELD_OUT_EVERY} rows or more without `split` (one in {HELD_OUT_EVERY} is held out then)"
        fix = f"{fix}, or mark some held_out"
        yield Oddity("hint", "nothing_held_out", "no problem is held out, so nothing shows what was learned", fix)
    ids = [problem.id for problem in (*train, *held_out)]
    double = sorted({name for name in ids if ids.count(name) > 1}) if len(ids) < 20_000 else []
    if double and not (set(double) == {p.id for p in train} == {p.id for p in held_out}):
        yield Oddity("fault", "double_ids", f"the id {double[0]} stands for several problems", "give each its own id")
    trained = {str(problem.messages) for problem in train}
    shared = sum(str(problem.messages) in trained for problem in held_out)
    if shared and not double and task.max_turns == 1:  # a game's opening says nothing of what is hidden
        what = f"{shared} of {len(held_out)} held-out problems are trained on too, word for word"
        fix = "keep them in one split: a score on them shows memory, not learning"
        yield Oddity("hint", "shared_prompts", what, fix)
    if any([p.messages for p in task.problems(split)] != [p.messages for p in splits[split]] for split in SPLITS):
        fix = "draw them with a fixed seed: resuming needs the same problems in the same order"
        yield Oddity("fault", "unsteady_problems", "problems() gives other problems the second time", fix)
    if any(not message["content"].strip() for p in (*train, *held_out) for message in p.messages):
        yield Oddity("fault", "empty_prompt", "a prompt is empty", "take the row out")


def _rewards(trials: Sequence[Trial]) -> Iterator[Oddity]:
    graded = [trial for trial in trials if trial.first.kind != "grader_error"]
    failed = [trial for trial in trials if trial.first.kind == "grader_error"]
    if failed:
        samples, answer = failed[0].first.text.partition("\n")[0], failed[0].answer[:40]
        what = f"the grader failed on {len(failed)} of {len(trials)} answers, first on {answer!r}: {samples}"
        yield Oddity("fault", "raises", what, "whatever a model may write, grade must give a verdict on it")
    rewards = {trial.first.reward for trial in graded}
    if len(rewards) == 1 and len(graded) > 1:
        what = f"the reward is {rewards.pop():g} for each of the {len(graded)} answers tried: {_tried(graded)}"
        if graded[0].first.success:
            yield Oddity("fault", "same_reward", what, "let wrong answers fail")
        else:
            fix = (
                "fine if none of them is right: grade one that is with `sdpo tasks grade`, or define solution(problem)"
            )
            yield Oddity("hint", "same_reward", what, fix)
    missed = [trial for trial in graded if trial.known_right and not trial.first.success]
    if missed:
        what = f"the task's own solution of problem {missed[0].problem.id} is a failure: {missed[0].first.text[:80]!r}"
        yield Oddity("fault", "solution_fails", what, "mend grade or solution")
    missed = [trial for trial in graded if trial.answer == trial.problem.reference and not trial.first.success]
    if missed:
        said = f"the reference of problem {missed[0].problem.id} is a failure: {missed[0].first.text[:80]!r}"
        yield Oddity("hint", "reference_fails", said, "mend the row: its reference is shown as a right answer")
    blank = [trial for trial in graded if not trial.answer.strip() and trial.first.success]
    if blank:
        what = f"an empty answer to problem {blank[0].problem.id} is a success"
        yield Oddity("fault", "empty_wins", what, "let empty answers fail: models find them fast")
    won, lost = ([t.first.reward for t in graded if t.first.success is flag] for flag in (True, False))
    if won and lost and min(won) < max(lost):
        what = f"a success has the reward {min(won):g}, a failure {max(lost):g}"
        yield Oddity("fault", "upside_down", what, "let success follow from the reward")


def _tried(trials: Sequence[Trial]) -> str:
    """Return which answers were graded: of each kind the number, and a few of them."""
    made, private, reference, solution = "made-up answers", "values of the rows", "reference answers", "solutions"
    kinds: dict[str, list[str]] = {kind: [] for kind in (made, private, reference, solution)}
    for trial in trials:
        values = set(_leaves(trial.problem.private))
        right = solution if trial.known_right else reference if trial.answer == trial.problem.reference else ""
        kinds[right or (private if trial.answer in values else made)].append(trial.answer)
    parts = []
    for kind, answers in kinds.items():
        shown = {shorten_middle(" ".join(answer.split()), _SHOWN) for answer in answers if answer.strip()}
        examples = sorted(shown, key=lambda text: (len(text), text))[:3]
        named = f" ({', '.join(map(repr, examples))}, ...)" if examples else ""
        parts.append(f"{len(answers) or 'no'} {kind}{named}")
    return "; ".join(parts)


def _texts(trials: Sequence[Trial]) -> Iterator[Oddity]:
    failures = [t for t in trials if not t.first.success and t.first.kind != "grader_error"]
    silent = [t for t in failures if not t.first.text.strip()]
    if failures and len(silent) == len(failures):
        fix = "return (reward, feedback) with a sentence on what was wrong; without any only demonstrations teach"
        yield Oddity("hint", "no_feedback", "no failure says what was wrong", fix)
    elif silent:
        what = f"{len(silent)} of {len(failures)} failures say nothing, as on {silent[0].answer[:40]!r}"
        yield Oddity("hint", "empty_feedback", what, "say what was wrong there too")
    texts = {t.first.text for t in failures if t.first.text.strip()}
    if len(failures) > 3 and len(texts) == 1:
        yield Oddity("hint", "same_feedback", "every failure is told the same", "say what was wrong with this answer")
    if any(len(t.first.text) >= FEEDBACK_LIMIT for t in trials):
        what = f"feedback reaches the cap of {FEEDBACK_LIMIT:,} characters"
        yield Oddity("hint", "long_feedback", what, "say less: the self-teacher reads it all")
    if any(_ADDRESS.search(t.first.text) for t in failures):
        yield Oddity("hint", "addresses", "feedback holds memory addresses, which differ each time", "take them out")


def _leaks(trials: Sequence[Trial]) -> Iterator[Oddity]:
    """Private values in feedback or prompt that neither the question nor the answer held."""
    for trial in trials:
        question = "\n".join(message["content"] for message in trial.problem.messages)
        secrets = [leaf for leaf in set(_leaves(trial.problem.private)) if len(leaf) >= LEAST_TELLING]
        leaked = [s for s in secrets if s in trial.first.text and s not in trial.answer and s not in question]
        if leaked and trial.first.kind != "grader_error":
            what = f"the feedback on problem {trial.problem.id} quotes the private value {min(leaked)[:60]!r}"
            fix = "fine if it is meant to; else say what is wrong without it: the self-teacher would only copy"
            yield Oddity("hint", "leaks", what, fix)
            return


def _calls(trials: Sequence[Trial]) -> Iterator[Oddity]:
    """Grades that differ from call to call or take long."""
    differing = [t for t in trials if t.first != t.second]
    if differing:
        what = f"the same answer to problem {differing[0].problem.id} was graded in two ways"
        fix = "take chance, time and state kept between calls out of grade; it runs on several threads"
        yield Oddity("fault", "unsteady", what, fix)
    times = [trial.seconds for trial in trials]
    if times and statistics.median(times) > SLOW_SECONDS:
        what = f"a verdict takes {statistics.median(times):.1f} seconds"
        yield Oddity("hint", "slow", what, "a step needs many of them; do less, or cache")


def _leaves(value: Any) -> Iterator[str]:
    """Yield the texts and numbers inside a private value, as text."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("split", "level", "family", "kind"):
                yield from _leaves(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)
