"""Progress of a run and of the task at hand: state for the views, no drawing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_cli.terminal.render import duration

from sdpo_mlx.runs.pace import Pace

if TYPE_CHECKING:  # so that `sdpo models list`, which shows progress too, loads no model code
    from sdpo_mlx.config import Config
    from sdpo_mlx.core.progress import ProgressCallback
    from sdpo_mlx.types import RolloutGroup

WARNINGS_KEPT = 3
MIN_SECONDS = 1.0  # of work before a remaining time is estimated
MIN_SHARE = 0.1  # of the work as well: of rollouts decoded in one batch, the first finished one says little


class TaskProgress:
    """One long task; the first `update` sets the baseline, since cached items took no time."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.clock, self.started = name, clock, clock()
        self.done = self.total = 0
        self._baseline: tuple[int, float] | None = None

    def update(self, done: int, total: int) -> None:
        """Record how many items are done; a total of 0 is unknown."""
        self.done, self.total = done, total
        self._baseline = self._baseline or (done, self.clock())

    def seconds_left(self) -> float | None:
        """Estimate from the rate so far; None before there is one."""
        if self._baseline is None or not self.total:
            return None
        (already, since), now = self._baseline, self.clock()
        if self.done - already < max(1, MIN_SHARE * (self.total - already)) or now - since < MIN_SECONDS:
            return None
        return (now - since) / (self.done - already) * max(0, self.total - self.done)

    def summary(self) -> str:
        """`12/64  0:42 left`; the elapsed time if the total is unknown."""
        left, elapsed = self.seconds_left(), duration(self.clock() - self.started)
        return "  ".join(part for part in (self.count(), f"{duration(left)} left" if left else elapsed) if part)

    def count(self) -> str:
        """`12/64`, `12` if the total is unknown, blank before the first update."""
        return f"{self.done}/{self.total}" if self.total else str(self.done or "")


@dataclass
class TaskTracker:
    """The current task; `start` is a `StartTask`, and `on_update` is called at each update."""

    on_update: Callable[[TaskProgress], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    current: TaskProgress | None = None

    def start(self, name: str) -> ProgressCallback:
        """Begin the next task and return its progress callback; a blank name ends the current one."""
        task = self.current = TaskProgress(name, self.clock) if name else None

        def update(done: int, total: int) -> None:
            if task is not None:
                task.update(done, total)
                self.on_update(task)

        return update


@dataclass(frozen=True)
class Header:
    """What stays the same for the whole run."""

    model: str
    task: str
    objective: str
    teacher: str
    device: str
    out: str
    steps: int
    eval_every: int = 0

    @classmethod
    def of(cls, cfg: Config, device: str, out: Path) -> Header:
        """Read it off the settings of a run."""
        names = cfg.model.name, cfg.task.name, cfg.objective.kind, cfg.teacher.kind
        return cls(*names, device=device, out=str(out), steps=cfg.train.steps, eval_every=cfg.train.eval_every)

    def line(self) -> str:
        """All of it in one line."""
        what = f"{self.model} on {self.task}, {self.objective}, teacher {self.teacher}, {self.steps} steps"
        return f"{what}, {self.device}, out {self.out}"


@dataclass(frozen=True)
class Sample:
    """One rollout to show; all of it is untrusted text."""

    problem: str
    answer: str
    kind: str
    feedback: str


@dataclass
class Progress:
    """The state of a run, updated by `observe`; `step` counts completed steps.

    `keys` says how to stop. `ended` is the state of a run that no longer runs, such as `stopped`.
    """

    header: Header
    clock: Callable[[], float] = time.time
    keys: str = "Ctrl-C saves and stops"
    step: int = 0
    steps: list[Mapping[str, Any]] = field(default_factory=list)
    evals: list[Mapping[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sample: Sample | None = None
    before: Mapping[str, Any] | None = None
    ended: str = ""
    stopping: Callable[[], bool] = lambda: False
    tasks: TaskTracker = field(default_factory=TaskTracker)
    pace: Pace = field(default_factory=Pace)

    def observe(self, event: Mapping[str, Any], groups: Sequence[RolloutGroup] = ()) -> None:
        """Update from one event; `groups` are those of a step."""
        kind = event["type"]
        if kind == "run_started":  # a stream that is read again from its beginning
            self.steps, self.evals, self.warnings, self.before, self.step, self.pace = [], [], [], None, 0, Pace()
        self.step = max(self.step, int(event["step"]))
        self.pace.observe(event, self.clock())
        if kind == "step":
            self.steps.append(event)
            self.sample = pick_sample(groups) or self.sample
        elif kind == "eval" and event.get("final"):
            self.before = event if event.get("adapter") == "none" else self.before
        elif kind == "eval":
            self.evals.append(event)
        elif kind in ("warning", "decline"):
            self.warnings = [*self.warnings, str(event.get("message", ""))][-WARNINGS_KEPT:]
            if isinstance(every := event.get("eval_every"), int):  # a slow machine evaluates less often
                self.header = replace(self.header, eval_every=every)
        elif kind == "run_finished":
            self.tasks.start("")
        self.ended = "finished" if kind == "run_finished" else ""

    @property
    def latest(self) -> Mapping[str, Any]:
        """The event of the last step, empty before the first."""
        return self.steps[-1] if self.steps else {}

    def curve(self, name: str) -> list[float]:
        """Return a metric of all steps that have it."""
        return [step[name] for step in self.steps if step.get(name) is not None]

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The held-out evaluation with the highest score, the earliest of equals."""
        return max(self.evals, key=_score, default=None)

    def seconds_left(self) -> float | None:
        """Estimate the rest with its evaluations; None before the first step, and if the run has ended."""
        header = self.header
        return None if self.ended else self.pace.left(self.step, header.steps, header.eval_every, self.clock())

    def elapsed(self) -> float:
        """The time of the whole run in seconds, without pauses."""
        return self.pace.spent if self.ended else self.pace.elapsed(self.clock())

    def with_context(self) -> float | None:
        """Share of the last step's rollouts that have a teacher context."""
        shares = [self.latest.get(f"teacher/with_{what}") for what in ("demonstration", "feedback")]
        known = [share for share in shares if share is not None]
        return min(1.0, sum(known)) if known else None

    def skips(self) -> dict[str, int]:
        """Skipped rollouts of the last step by reason, zeros left out."""
        found = {name.removeprefix("skip/"): value for name, value in self.latest.items() if name.startswith("skip/")}
        return {reason: int(count) for reason, count in found.items() if count}

    def speed(self, tokens: str, *times: str) -> float | None:
        """Tokens per second in one part of the last step; None if it took no time."""
        seconds = sum(self.latest.get(f"time/{name}") or 0.0 for name in times)
        count = self.latest.get(f"tokens/{tokens}") or 0
        return count / seconds if seconds > 0 and count else None


def _score(event: Mapping[str, Any]) -> float:
    return -math.inf if event.get("score") is None else float(event["score"])


def pick_sample(groups: Sequence[RolloutGroup]) -> Sample | None:
    """Return a failed rollout with feedback if there is one, otherwise the first rollout."""
    pairs = [(g.problem, r, f) for g in groups for r, f in zip(g.rollouts, g.feedback, strict=True)]
    chosen = next(((p, r, f) for p, r, f in pairs if not f.success and f.text.strip()), pairs[0] if pairs else None)
    if chosen is None:
        return None
    problem, rollout, feedback = chosen
    return Sample(problem.messages[-1]["content"], rollout.text, feedback.kind, feedback.text)
