"""How long a run has taken and how long the rest will take, from the times of its events."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from sdpo_mlx.runs.events import number

FAST_EVALUATION = 60.0  # seconds that nobody minds
RECENT_STEPS = 8  # rollouts grow or shrink in training: older steps say little about the next ones


@dataclass
class Pace:
    """The durations of steps, evaluations and the measurement of forgetting, in seconds.

    `spent` is the time of all processes of a run together, without the pauses between them.
    """

    spent: float = 0.0
    last: float | None = None  # the time of the last event
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    evaluation: float = 0.0
    forgetting: float = 0.0
    evaluated: int = 0  # the step of the last evaluation

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> Pace:
        """Return the pace after these events."""
        pace = cls()
        for event in events:
            pace.observe(event)
        return pace

    def observe(self, event: Mapping[str, Any], now: float | None = None) -> None:
        """Take in the next event; `now` replaces a missing time."""
        kind, time = event.get("type"), number(event.get("time"))
        time = now if time is None else time
        if time is None:
            return
        if kind in ("run_started", "resumed") or self.last is None:
            self.last = time
            return
        took, self.last = max(0.0, time - self.last), time
        self.spent += took
        step = int(number(event.get("step")) or 0)
        if kind == "step":
            self.steps.append(took)
        elif kind == "eval":
            self.evaluated = step
            # The scores of an untouched model are sampled once: its later events take no time.
            if step or event.get("final"):
                self.evaluation = took
        elif kind == "forgetting":
            self.forgetting = max(self.forgetting, took)

    def elapsed(self, now: float) -> float:
        """Return the time so far, that since the last event included."""
        return self.spent + self._since(now)

    def left(self, step: int, last_step: int, eval_every: int, now: float) -> float | None:
        """Return the time until the end: steps, evaluations, final score and forgetting; None before the first step.

        Evaluations are due every `eval_every` steps (0: none) and after the last step.
        """
        if not self.steps:
            return None
        steps = last_step - step
        due = evaluations(step, last_step, eval_every) + (step > self.evaluated and is_due(step, last_step, eval_every))
        current = fmean(self.steps) if steps else 0.0
        total = steps * current + (due + 1) * self.evaluation + self.forgetting
        # Work that takes longer than it should says nothing about the work after it.
        return max(0.0, total - min(self._since(now), max(current, self.evaluation)))

    def _since(self, now: float) -> float:
        return 0.0 if self.last is None else max(0.0, now - self.last)


def affordable(eval_every: int, seconds: float, step_seconds: float, share: float) -> int:
    """Return how many steps should lie between evaluations: a multiple of `eval_every`, which is kept if they are fast.

    Evaluations that take so many `seconds` then take at most a `share` of the time.
    """
    if not eval_every or seconds <= FAST_EVALUATION or share >= 1 or step_seconds <= 0:
        return eval_every
    return eval_every * max(1, math.ceil((1 - share) / share * seconds / (eval_every * step_seconds)))


def is_due(step: int, last_step: int, eval_every: int) -> bool:
    """Return whether the student is evaluated on held-out problems after this step."""
    return step in (0, last_step) or bool(eval_every and step % eval_every == 0)


def evaluations(step: int, last_step: int, eval_every: int) -> int:
    """Return how many evaluations are due after later steps."""
    return sum(is_due(each, last_step, eval_every) for each in range(step + 1, last_step + 1))
