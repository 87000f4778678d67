"""What a run's events add up to for somebody who watches; no drawing here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo_cli.terminal.pace import RunningTask

from sdpo_mlx.rl.components import Components
from sdpo_mlx.types import RolloutGroup

WARNINGS_KEPT = 3


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
    rollouts: int

    @classmethod
    def of(cls, setup: Components, out: Path) -> Header:
        """Read it off the parts of a run."""
        cfg, info = setup.cfg, setup.policy.info
        return cls(
            model=cfg.model.name,
            task=cfg.task.name,
            objective=cfg.objective.kind,
            teacher=cfg.teacher.kind,
            device=f"{info.backend} {info.device} {info.dtype}",
            out=str(out),
            steps=cfg.train.steps,
            rollouts=cfg.rollout.problems_per_step * cfg.rollout.group_size,
        )

    def line(self) -> str:
        """All of it for one line."""
        what = f"{self.model} on {self.task}, {self.objective}, teacher {self.teacher}, {self.steps} steps"
        return f"{what}, {self.device}, out {self.out}"


@dataclass(frozen=True)
class Sample:
    """One answer to look at; all of it is untrusted."""

    problem: str
    answer: str
    kind: str
    feedback: str


@dataclass
class Progress:
    """Grows with `observe`; `step` counts completed steps."""

    header: Header
    clock: Callable[[], float] = time.monotonic
    step: int = 0
    success: list[float] = field(default_factory=list)
    evals: list[Mapping[str, Any]] = field(default_factory=list)
    latest: Mapping[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    sample: Sample | None = None
    before: Mapping[str, Any] | None = None
    stopping: Callable[[], bool] = lambda: False
    work: RunningTask = field(default_factory=RunningTask)
    rollouts: int = 0
    _marks: list[tuple[int, float]] = field(default_factory=list)

    def observe(self, event: Mapping[str, Any], groups: Sequence[RolloutGroup] = ()) -> None:
        """Take in one event; `groups` are those of a step."""
        kind, self.step = event["type"], max(self.step, int(event["step"]))
        if kind == "step":
            self.latest, self.rollouts = event, sum(len(group.rollouts) for group in groups)
            self.success += [] if event.get("success/rate") is None else [event["success/rate"]]
            self.sample = telling(groups) or self.sample
        elif kind == "eval" and event.get("final"):
            self.before = event if event.get("adapter") == "none" else self.before
        elif kind == "eval":
            self.evals.append(event)
        elif kind == "warning":
            self.warnings = [*self.warnings, str(event.get("message", ""))][-WARNINGS_KEPT:]
        if kind in ("run_started", "resumed"):  # what it took before it was stopped says nothing of now
            self._marks.clear()
        if kind in ("step", "run_started", "resumed"):
            self._marks.append((self.step, event.get("time") or self.clock()))
        elif kind == "run_finished":
            self.work.doing("")

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The held-out evaluation with the highest score, the earliest of equals."""
        return max(self.evals, key=lambda event: event.get("score") or -math.inf, default=None)

    def seconds_left(self) -> float | None:
        """From the pace since the run began or went on; None before its first step."""
        (first, begun), (last, ended) = (self._marks or [(0, 0.0)])[0], (self._marks or [(0, 0.0)])[-1]
        if last == first:
            return None
        return (ended - begun) / (last - first) * (self.header.steps - last)

    def with_context(self) -> float | None:
        """Share of the last step's rollouts for which the self-teacher had something to go by."""
        shares = [self.latest.get(f"teacher/with_{what}") for what in ("demonstration", "feedback")]
        known = [share for share in shares if share is not None]
        return min(1.0, sum(known)) if known else None

    def skips(self) -> dict[str, int]:
        """Why the others had none: rollouts of the last step by reason, zeros left out."""
        found = {name.removeprefix("skip/"): value for name, value in self.latest.items() if name.startswith("skip/")}
        return {reason: int(count) for reason, count in found.items() if count}

    def speed(self, tokens: str, *times: str) -> float | None:
        """Tokens a second in one part of the last step; None where it took no time."""
        seconds = sum(self.latest.get(f"time/{name}") or 0.0 for name in times)
        count = self.latest.get(f"tokens/{tokens}") or 0
        return count / seconds if seconds > 0 and count else None


def telling(groups: Sequence[RolloutGroup]) -> Sample | None:
    """A failure with feedback where there is one, else the first answer."""
    pairs = [(g.problem, r, f) for g in groups for r, f in zip(g.rollouts, g.feedback, strict=True)]
    chosen = next(((p, r, f) for p, r, f in pairs if not f.success and f.text.strip()), pairs[0] if pairs else None)
    if chosen is None:
        return None
    problem, rollout, feedback = chosen
    return Sample(problem.messages[-1]["content"], rollout.text, feedback.kind, feedback.text)
