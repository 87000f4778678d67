"""A coaching session on a terminal or a pipe: what is shown, what is heard, what is counted."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.rl.optimization import LearnResult
    from sdpo_mlx.training.coaching import Coaching
    from sdpo_mlx.training.lessons import Lesson, Remark
    from sdpo_mlx.types import Feedback, Problem, Rollout

SHOWN = 6_000  # characters of one text on a terminal
HELP = "Say in one line what was wrong; empty: nothing to say, /good: it is right, /quit or Ctrl-D: end."
QUIT, GOOD = "/quit", "/good"


@dataclass
class Tally:
    """What a session did."""

    lessons: int = 0
    remarks: int = 0
    good: int = 0
    steps: int = 0

    def add(self, lesson: Lesson, learned: LearnResult) -> None:
        """Count one lesson."""
        self.lessons += 1
        self.remarks += sum(bool(remark.text) for remark in lesson.remarks)
        self.good += sum(remark.good for remark in lesson.remarks)
        self.steps += bool(learned.update and learned.update.applied)


@dataclass(frozen=True)
class Answered:
    """What the model said to one question: answers, or episodes with the environment's own verdicts."""

    rollouts: tuple[Rollout, ...]
    verdicts: tuple[Feedback, ...] = ()
    last_decides: bool = True


def session(coaching: Coaching, problems: Iterator[Problem], tally: Tally, *, plays: bool, again: bool) -> None:
    """Ask, listen, learn, until the problems or the person's patience end; `plays` lets the environment reply."""
    from sdpo_mlx.training.lessons import Lesson

    if coaching.caught_up:
        render.say(f"learned what was left from last time: {coaching.caught_up} lessons")
    render.say(HELP)
    for problem in problems:
        render.say(f"\nlesson {coaching.step + 1}, {problem.id}:")
        _lines(problem.messages[-1]["content"])
        found = answered(coaching, problem, plays)
        if not found.rollouts:
            render.say("not asked: the prompt leaves no room for an answer")
            continue
        remarks, over = listen(found)
        if over and not any(remark.said for remark in remarks):
            return
        lesson = Lesson(problem, found.rollouts, remarks, found.last_decides)
        learned = coaching.teach(lesson)
        tally.add(lesson, learned)
        render.say(_outcome(lesson, learned))
        if over:
            return
        if again:
            now = answered(coaching, problem, plays, [rollout.turns[0].seed for rollout in found.rollouts])
            for rollout in now.rollouts:
                render.say("the same seed gives now:")
                _told(rollout)


def answered(coaching: Coaching, problem: Problem, plays: bool, seeds: Sequence[int] | None = None) -> Answered:
    """Answers or episodes, one a seed where seeds are given; no rollout where the prompt does not fit."""
    if not plays:
        return Answered(coaching.ask(problem, seeds))
    group = coaching.play(problem, seeds)
    return Answered(group.rollouts, group.feedback, group.last_decides) if group else Answered(())


def listen(found: Answered) -> tuple[tuple[Remark, ...], bool]:
    """A remark for each answer or episode, and whether the person wants to end; what came after that is empty."""
    from sdpo_mlx.training.lessons import Remark

    count = len(found.rollouts)
    remarks = [Remark()] * count
    for number, rollout in enumerate(found.rollouts):
        which = f" {number + 1} of {count}" if count > 1 else ""
        what = "episode" if found.verdicts else "answer"
        render.say(f"{what}{which}{' (cut off)' if rollout.finish == 'length' else ''}:")
        _told(rollout)
        if found.verdicts:
            render.say(_verdict(found.verdicts[number]))
        line = heard("what was wrong? ")
        if line is None or line == QUIT:
            return tuple(remarks), True
        remarks[number] = Remark(good=True) if line == GOOD else Remark(line)
    return tuple(remarks), False


def _told(rollout: Rollout) -> None:
    """An answer; in an episode each one numbered, with what the environment replied to it."""
    for number, exchange in enumerate(rollout.earlier, 1):
        render.say(f"turn {number}:")
        _lines(exchange.answer.text)
        render.say("the environment replies:")
        _lines(exchange.reply)
    if rollout.earlier:
        render.say(f"turn {len(rollout.earlier) + 1}:")
    _lines(rollout.text)


def _verdict(feedback: Feedback) -> str:
    """How the environment ends it, in one word; the person's line is what counts."""
    if feedback.kind == "grader_error":
        return f"the environment failed: {' '.join(render.untrusted(feedback.text, 300, ''))}"
    return f"the environment calls it {'right' if feedback.success else 'wrong'}"


def heard(question: str) -> str | None:
    """One line of the person's, cleaned; None at the end. A JSON string may hold several lines."""
    from sdpo_mlx.core.text import clean

    while True:
        line = _read(question)
        if line is None:
            return None
        line = line.strip()
        if re.fullmatch(r"/[a-z]+", line) and line not in (QUIT, GOOD):
            render.say(f"{line} is not known. {HELP}")
            continue
        return clean(_unquoted(line)).strip()


def _read(question: str) -> str | None:
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


def _unquoted(line: str) -> str:
    if line.startswith('"'):
        try:
            value = json.loads(line)
        except ValueError:
            return line
        return value if isinstance(value, str) else line
    return line


def _outcome(lesson: Lesson, learned: LearnResult) -> str:
    update = learned.update
    if update is not None and update.applied:
        return f"learned: divergence {render.number(update.divergence)}, gradient {render.number(update.grad_norm)}"
    if update is not None:
        return f"nothing learned: {update.reason}"
    said = any(remark.said for remark in lesson.remarks)
    return f"nothing learned: {'the settings leave nothing to learn from this' if said else 'nothing was said'}"


def _lines(text: str) -> None:
    for line in render.untrusted(text.rstrip(), SHOWN):
        render.say(line)
