"""What the health rules need of a run's events: the first steps, the last ones, and the evaluations.

It is fed with the events as `events.jsonl` holds them, so that a resumed run gets the same from its file.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from sdpo_mlx.runs.events import number

Event = Mapping[str, Any]
WINDOW_STEPS, WINDOW_ROLLOUTS = 3, 64  # a window has at least as many of both: one batch of problems may be hard
SUCCESS = "success/rate"
SUCCESSES = (SUCCESS, "success", "teacher/success", "teacher/student", "pass@1")  # of steps, probe, evaluations
MOST_STEPS = 16  # of a window: memory and work stay constant however long the run


@dataclass(frozen=True)
class Window:
    """Consecutive steps; names are those of `step` events, NaN if no step has a number."""

    steps: Sequence[Event]
    rollouts: int

    def mean(self, name: str) -> float:
        """Return the mean over the steps."""
        found = self._values(name)
        return fmean(found) if found else math.nan

    def median(self, name: str) -> float:
        """Return the median over the steps."""
        found = self._values(name)
        return median(found) if found else math.nan

    def _values(self, name: str) -> list[float]:
        return [value for each in self.steps if (value := number(each.get(name))) is not None]

    def __str__(self) -> str:
        return f"steps {self.steps[0]['step']} to {self.steps[-1]['step']}"


@dataclass
class History:
    """The events of a run so far, as much of them as the rules read.

    `best` is the evaluation with the highest score before `latest`; `warned` are the rules that have warned.
    `succeeded`: some rollout of student or self-teacher has, in training, in the probe or held-out.
    """

    first: list[Event] = field(default_factory=list)
    last: deque[Event] = field(default_factory=lambda: deque(maxlen=2 * MOST_STEPS))
    peak: Window | None = None  # the steps with the highest training success, before the last ones
    rollouts: int = 0  # of the first step
    teacher: deque[Event] = field(default_factory=lambda: deque(maxlen=64))  # steps that sampled the self-teacher
    best: Event | None = None
    latest: Event | None = None
    evaluations: int = 0
    warned: set[str] = field(default_factory=set)
    probe: Event | None = None
    succeeded: bool = False

    def add(self, event: Event) -> None:
        """Take in an event; types that no rule reads are ignored."""
        kind = event.get("type")
        if kind in ("probe", "step", "eval"):
            self.succeeded = self.succeeded or any(number(event.get(name)) for name in SUCCESSES)
        if kind == "probe":
            self.probe = event
        elif kind == "step":
            self.rollouts = self.rollouts or int(number(event.get("generations/total")) or 0)
            if len(self.first) < MOST_STEPS:
                self.first.append(event)
            self.last.append(event)
            self._add_peak()
            if number(event.get("teacher/answers")):
                self.teacher.append(event)
        elif kind == "eval" and not event.get("final"):
            self._add_evaluation(event)
        elif kind == "warning" and event.get("rule"):
            self.warned.add(event["rule"])
        elif kind == "decline" and event.get("action") == "rollback":
            # What came before belongs to weights that are gone; the same may happen again.
            self.last.clear()
            self.warned.discard(event["rule"])

    def _add_evaluation(self, event: Event) -> None:
        self.evaluations += 1
        if self.latest is not None and (self.best is None or _score(self.latest) > _score(self.best)):
            self.best = self.latest
        self.latest = event

    def _add_peak(self) -> None:
        size = self._size()
        before = Window(list(self.last)[-2 * size : -size], size * self.rollouts)
        if len(before.steps) == size and not (self.peak and self.peak.mean(SUCCESS) >= before.mean(SUCCESS)):
            self.peak = before

    @property
    def hopeless(self) -> bool:
        """Whether nothing has succeeded, the probe included, and the first steps had no part of a reward either."""
        rewarded = any(number(each.get("reward/mean")) for each in self.first)
        return self.probe is not None and not self.succeeded and not rewarded

    def _size(self) -> int:
        """Return the number of steps in a window."""
        size = -(-WINDOW_ROLLOUTS // max(1, self.rollouts))
        return min(MOST_STEPS, max(WINDOW_STEPS, size))

    def latest_window(self) -> Window | None:
        """Return the last steps; None while there are fewer than a window has."""
        size = self._size()
        last = list(self.last)[-size:]
        return Window(last, size * self.rollouts) if len(last) == size else None

    def windows(self) -> tuple[Window, Window] | None:
        """Return the first steps and the last ones; None while they overlap."""
        size = self._size()
        first, last = self.first[:size], self.latest_window()
        if last is None or last.steps[0]["step"] <= first[-1]["step"]:
            return None
        return Window(first, size * self.rollouts), last


def _score(evaluation: Event) -> float:
    score = number(evaluation.get("score"))
    return -math.inf if score is None else score
