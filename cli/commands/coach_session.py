"""A coaching session on a terminal or a pipe: show rollouts, read feedback, train, count."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.rl.optimization import LearnResult
    from sdpo_mlx.training.coaching import Coaching
    from sdpo_mlx.training.lessons import HumanFeedback, Lesson
    from sdpo_mlx.types import Feedback, Problem, Rollout

SHOWN = 6_000  # characters of one text on a terminal
HELP = "Type in one line what is wrong. Empty: no feedback, /good: correct, /quit or Ctrl-D: end."
QUIT, GOOD = "/quit", "/good"


@dataclass
class Tally:
    """The counts of a session."""

    lessons: int = 0
    remarks: int = 0
    good: int = 0
    steps: int = 0

    def add(self, lesson: Lesson, learned: LearnResult) -> None:
        """Count one lesson."""
        self.lessons += 1
        self.remarks += sum(bool(each.text) for each in lesson.feedback)
        self.good += sum(each.good for each in lesson.feedback)
        self.steps += bool(learned.update and learned.update.applied)


@dataclass(frozen=True)
class Sampled:
    """The rollouts of one problem; episodes come with the environment's feedback."""

    rollouts: tuple[Rollout, ...]
    feedback: tuple[Feedback, ...] = ()
    last_decides: bool = True


def session(coaching: Coaching, problems: Iterator[Problem], tally: Tally, *, plays: bool, again: bool) -> None:
    """Sample, read feedback and train until the problems end or the user quits; `plays` samples episodes."""
    from sdpo_mlx.training.lessons import Lesson

    if coaching.caught_up:
        render.message(f"trained on {render.plural(coaching.caught_up, 'lesson')} left from the last session")
    render.message(HELP)
    for problem in problems:
        render.message(f"\nlesson {coaching.step + 1}, {problem.id}:")
        show_text(problem.messages[-1]["content"])
        sampled = sample(coaching, problem, plays)
        if not sampled.rollouts:
            render.message("not sampled: the prompt leaves no tokens for a rollout")
            continue
        feedback, over = read_feedback(sampled)
        if over and not any(each.given for each in feedback):
            return
        lesson = Lesson(problem, sampled.rollouts, feedback, sampled.last_decides)
        learned = coaching.learn(lesson)
        tally.add(lesson, learned)
        if (update := learned.update) is None:
            given = any(each.given for each in feedback)
            why = "the settings leave nothing to learn from this" if given else "no feedback was given"
            render.message(f"not trained: {why}")
        elif update.applied:
            divergence, gradient = render.number(update.divergence), render.number(update.grad_norm)
            render.message(f"trained: divergence {divergence}, gradient {gradient}")
        else:
            render.message(f"not trained: {update.reason}")
        if over:
            return
        if again:
            seeds = [rollout.turns[0].seed for rollout in sampled.rollouts]
            for rollout in sample(coaching, problem, plays, seeds).rollouts:
                render.message("with the same seed now:")
                _show_rollout(rollout)


def sample(coaching: Coaching, problem: Problem, plays: bool, seeds: Sequence[int] | None = None) -> Sampled:
    """Sample rollouts or episodes, one per seed if seeds are given; none if the prompt does not fit."""
    if not plays:
        return Sampled(coaching.sample(problem, seeds))
    group = coaching.sample_episodes(problem, seeds)
    return Sampled(group.rollouts, group.feedback, group.last_decides) if group else Sampled(())


def read_feedback(sampled: Sampled) -> tuple[tuple[HumanFeedback, ...], bool]:
    """Show each rollout and read feedback for it; return the feedback and whether the user quit."""
    from sdpo_mlx.training.lessons import HumanFeedback

    count = len(sampled.rollouts)
    feedback = [HumanFeedback()] * count
    for number, rollout in enumerate(sampled.rollouts):
        which = f" {number + 1} of {count}" if count > 1 else ""
        what = "episode" if sampled.feedback else "rollout"
        render.message(f"{what}{which}{' (truncated)' if rollout.finish == 'length' else ''}:")
        _show_rollout(rollout)
        if sampled.feedback:
            render.message(_grade(sampled.feedback[number]))
        line = read_answer("what is wrong? ")
        if line is None or line == QUIT:
            return tuple(feedback), True
        feedback[number] = HumanFeedback(good=True) if line == GOOD else HumanFeedback(line)
    return tuple(feedback), False


def _show_rollout(rollout: Rollout) -> None:
    """Print a rollout; an episode turn by turn with the replies of the environment."""
    for number, exchange in enumerate(rollout.earlier, 1):
        render.message(f"turn {number}:")
        show_text(exchange.answer.text)
        render.message("environment:")
        show_text(exchange.reply)
    if rollout.earlier:
        render.message(f"turn {len(rollout.earlier) + 1}:")
    show_text(rollout.text)


def _grade(feedback: Feedback) -> str:
    """The environment's grade in one word; the user's feedback is what counts."""
    if feedback.kind == "grader_error":
        return f"the environment failed: {' '.join(render.untrusted(feedback.text, 300, ''))}"
    return f"graded by the environment: {'correct' if feedback.success else 'incorrect'}"


def read_answer(question: str) -> str | None:
    """Read one line, cleaned; None at the end of input. A JSON string may contain several lines."""
    from sdpo_mlx.core.text import clean

    while True:
        line = _read_line(question)
        if line is None:
            return None
        line = line.strip()
        if re.fullmatch(r"/[a-z]+", line) and line not in (QUIT, GOOD):
            render.message(f"unknown command {line}. {HELP}")
            continue
        with suppress(ValueError):
            value = json.loads(line) if line.startswith('"') else line
            line = value if isinstance(value, str) else line
        return clean(line).strip()


def _read_line(question: str) -> str | None:
    if sys.stdin.isatty() and sys.stdout.isatty():
        import readline  # noqa: F401 - lets input() edit the line

        try:
            return input(question)
        except EOFError:
            return None
    sys.stderr.write(question)
    sys.stderr.flush()
    line = sys.stdin.readline()
    sys.stderr.write("\n")
    return line or None


def show_text(text: str) -> None:
    """Print untrusted text, indented."""
    for line in render.untrusted(text.rstrip(), SHOWN):
        render.message(line)
