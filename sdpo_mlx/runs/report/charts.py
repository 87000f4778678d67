"""The curves of one or several runs, each against steps and against sampled answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_mlx.core.statistics import wilson
from sdpo_mlx.runs.report.collect import Row, RunData
from sdpo_mlx.runs.report.svg import Series, line_chart

AXES = {"step": "steps", "generations/total": "sampled answers"}
_PHASES = ("generate", "grade", "teacher", "learn", "other")


def charts(stories: Sequence[RunData], axis: str) -> list[str]:
    """One SVG a question; `axis` is the event's name on the x-axis, a key of `AXES`."""
    lines, share = _Lines(stories, axis), (0.0, 1.0)
    drawn = [
        _chart("Success, training and held out", "share right", lines.success(), axis, share),
        _chart("Divergence of student and self-teacher", "mean a token", lines.divergence(), axis),
        _chart("Student and self-teacher on the same problems", "share right", lines.roles(), axis, share),
        _chart("Answers with a context", "share", lines.context(), axis, share),
        _chart("Length of an answer", "tokens", lines.each("length/mean"), axis),
        _chart("Entropy of the student", "nats", lines.each("entropy"), axis),
        _chart("Time of a step", "seconds", lines.phases(), axis),
        _chart("Peak memory", "MB", lines.memory(), axis),
    ]
    return [svg for svg in drawn if svg]


def _chart(title: str, y_label: str, series: list[Series], axis: str, y_range: Any = None) -> str:
    shown = [each for each in series if any(_known(y) is not None for y in each.ys)]
    top = max((y for each in shown for y in each.ys if _known(y) is not None), default=0.0)
    span = y_range or (0.0, top * 1.05 or 1.0)  # from 0, so that no small change looks large
    return line_chart(shown, title=title, x_label=AXES[axis], y_label=y_label, y_range=span) if shown else ""


def _known(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [math.nan if (value := _known(row.get(name))) is None else value for row in rows]


@dataclass(frozen=True)
class _Lines:
    """The lines of each chart: with several runs the colour tells the run, the dash what of it."""

    stories: Sequence[RunData]
    axis: str

    def each(self, name: str) -> list[Series]:
        """A figure of every step, a line a run."""
        return [self._line(n, "", 0, story.steps, name) for n, story in enumerate(self.stories)]

    def divergence(self) -> list[Series]:
        """Of the runs that have a self-teacher: the others' is 0 and says nothing."""
        every = zip(self.stories, self.each("divergence/mean"), strict=True)
        return [line for story, line in every if story.taught]

    def context(self) -> list[Series]:
        """What the self-teacher could see more than the student."""
        names = {"teacher/with_demonstration": "a sibling's success", "teacher/with_feedback": "feedback"}
        return self._both(names, lambda story: story.steps if story.taught else [])

    def roles(self) -> list[Series]:
        """Where the teacher answered too: its share of successes, and the student's without the context."""
        names = {"teacher/success": "self-teacher", "teacher/student": "student"}
        return self._both(names, lambda story: [row for row in story.steps if _known(row.get("teacher/answers"))])

    def phases(self) -> list[Series]:
        """A line a phase for one run; their sum for several."""
        if len(self.stories) == 1:
            return self._both({f"time/{name}": name for name in _PHASES}, lambda story: story.steps)
        return [
            self._series(n, "", 0, _column(s.steps, self.axis), [_whole(row) for row in s.steps])
            for n, s in enumerate(self.stories)
        ]

    def memory(self) -> list[Series]:
        """In units of 2^20 bytes."""
        lines = self.each("memory/peak")
        return [Series(s.name, s.xs, [y / 2**20 for y in s.ys], colour=s.colour, dash=s.dash) for s in lines]

    def success(self) -> list[Series]:
        """In training and on held-out problems."""
        return [line for n in range(len(self.stories)) for line in (self._training(n), self._held_out(n))]

    def _both(self, names: Mapping[str, str], rows_of: Any) -> list[Series]:
        return [
            self._line(n, what, at, rows_of(story), name)
            for n, story in enumerate(self.stories)
            for at, (name, what) in enumerate(names.items())
        ]

    def _line(self, run: int, what: str, at: int, rows: Sequence[Row], name: str) -> Series:
        return self._series(run, what, at, _column(rows, self.axis), _column(rows, name))

    def _series(
        self,
        run: int,
        what: str,
        at: int,
        xs: Sequence[float],
        ys: Sequence[float],
        band: tuple[Sequence[float], Sequence[float]] = ((), ()),
    ) -> Series:
        several, name = len(self.stories) > 1, self.stories[run].name
        words = " ".join(part for part in (name if several else "", what) if part) or name
        return Series(words, xs, ys, *band, colour=run if several else at, dash=at)

    def _training(self, run: int) -> Series:
        """The share of successes with Wilson's interval over the step's answers."""
        story = self.stories[run]
        rates, ends, before = _column(story.steps, "success/rate"), [], 0.0
        for rate, total in zip(rates, _column(story.steps, "generations/total"), strict=True):
            n, before = total - before, total
            fits = math.isfinite(rate) and math.isfinite(n) and n >= 1
            ends.append(wilson(min(rate * n, n), round(n)) if fits else (math.nan, math.nan))
        lows, highs = [low for low, _ in ends], [high for _, high in ends]
        return self._series(run, "training", 0, _column(story.steps, self.axis), rates, (lows, highs))

    def _held_out(self, run: int) -> Series:
        story = self.stories[run]
        rows = [row for row in story.evals if not row.get("final")]
        generated = {row.get("step"): row.get("generations/total") for row in story.steps}
        placed = [{**row, "generations/total": generated.get(row.get("step"), 0)} for row in rows]
        xs, ys, low, high = (_column(placed, name) for name in (self.axis, "score", "low", "high"))
        return self._series(run, "held out", 1, xs, ys, (low, high))


def _whole(row: Row) -> float:
    return math.fsum(_known(row.get(f"time/{name}")) or 0.0 for name in _PHASES)
