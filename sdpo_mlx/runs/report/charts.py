"""The charts of one or several runs, each against steps and against rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sdpo_mlx.core.statistics import wilson
from sdpo_mlx.runs.report.collect import Row, RunData, number
from sdpo_mlx.runs.report.svg import Series, line_chart

AXES = {"step": "steps", "generations/total": "rollouts"}
_PHASES = ("generate", "grade", "teacher", "learn", "other")
_ROLES = {"teacher/success": "self-teacher", "teacher/student": "student"}
_CONTEXT = {"teacher/with_demonstration": "demonstration", "teacher/with_feedback": "feedback"}


def charts(runs: Sequence[RunData], axis: str) -> list[str]:
    """Return one SVG for each chart that has data; `axis` is the event field on the x-axis, a key of `AXES`."""
    lines = _Lines(runs, axis)
    share = (0.0, 1.0)
    drawn = [
        _chart("Success, training and held out", "success rate", lines.success(), axis, share),
        # Without a self-teacher the divergence is always 0.
        _chart("Divergence of student and self-teacher", "mean per token", lines.with_teacher("divergence/mean"), axis),
        _chart("Student and self-teacher on the same problems", "success rate", lines.roles(), axis, share),
        _chart("Rollouts with a teacher context", "share", lines.context(), axis, share),
        _chart("Length of a rollout", "tokens", lines.each("length/mean"), axis),
        _chart("Entropy of the student", "nats", lines.each("entropy"), axis),
        _chart("Time of a step", "seconds", lines.phases(), axis),
        _chart("Peak memory", "MB", lines.memory(), axis),
    ]
    return [svg for svg in drawn if svg]


def _chart(
    title: str, y_label: str, series: list[Series], axis: str, y_range: tuple[float, float] | None = None
) -> str:
    shown = [each for each in series if any(map(math.isfinite, each.ys))]
    top = max((y for each in shown for y in each.ys if math.isfinite(y)), default=0.0)
    y_range = y_range or (0.0, top * 1.05 or 1.0)  # from 0, so that small changes do not look large
    return line_chart(shown, title=title, x_label=AXES[axis], y_label=y_label, y_range=y_range) if shown else ""


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [math.nan if (value := number(row.get(name))) is None else value for row in rows]


@dataclass(frozen=True)
class _Lines:
    """The lines of each chart: with several runs the colour stands for the run, the dash for the quantity."""

    runs: Sequence[RunData]
    axis: str

    def each(self, name: str) -> list[Series]:
        """Return a line for each run."""
        return [self._line(n, "", 0, run.steps, name) for n, run in enumerate(self.runs)]

    def with_teacher(self, name: str) -> list[Series]:
        """Return a line for each run with a self-teacher."""
        return [line for run, line in zip(self.runs, self.each(name), strict=True) if run.has_teacher]

    def context(self) -> list[Series]:
        """Return what the self-teacher's context held."""
        return self._several(_CONTEXT, lambda run: run.steps if run.has_teacher else [])

    def roles(self) -> list[Series]:
        """Return the success rates of the self-teacher and of the student without the context, where both sampled."""
        return self._several(_ROLES, lambda run: [row for row in run.steps if number(row.get("teacher/answers"))])

    def phases(self) -> list[Series]:
        """Return a line for each phase of one run; their sum for several runs."""
        if len(self.runs) == 1:
            return self._several({f"time/{name}": name for name in _PHASES}, lambda run: run.steps)
        return [
            replace(line, ys=[_total_time(row) for row in run.steps])
            for run, line in zip(self.runs, self.each("time/other"), strict=True)
        ]

    def memory(self) -> list[Series]:
        """Return peak memory in units of 2^20 bytes."""
        return [replace(line, ys=[y / 2**20 for y in line.ys]) for line in self.each("memory/peak")]

    def success(self) -> list[Series]:
        """Return success in training and on held-out problems."""
        return [line for n in range(len(self.runs)) for line in (self._training(n), self._held_out(n))]

    def _several(self, names: Mapping[str, str], rows_of: Callable[[RunData], Sequence[Row]]) -> list[Series]:
        return [
            self._line(n, label, at, rows_of(run), name)
            for n, run in enumerate(self.runs)
            for at, (name, label) in enumerate(names.items())
        ]

    def _line(self, run: int, label: str, at: int, rows: Sequence[Row], name: str) -> Series:
        several, run_name = len(self.runs) > 1, self.runs[run].name
        full = " ".join(part for part in (run_name if several else "", label) if part) or run_name
        return Series(full, _column(rows, self.axis), _column(rows, name), colour=run if several else at, dash=at)

    def _training(self, run: int) -> Series:
        """Return the success rate with Wilson's interval over the step's rollouts."""
        rows = self.runs[run].steps
        line, ends, before = self._line(run, "training", 0, rows, "success/rate"), [], 0.0
        for rate, total in zip(line.ys, _column(rows, "generations/total"), strict=True):
            n, before = total - before, total
            valid = math.isfinite(rate) and math.isfinite(n) and n >= 1
            ends.append(wilson(min(rate * n, n), round(n)) if valid else (math.nan, math.nan))
        return replace(line, lows=[low for low, _ in ends], highs=[high for _, high in ends])

    def _held_out(self, run: int) -> Series:
        generated = {row.get("step"): row.get("generations/total") for row in self.runs[run].steps}
        rows = [
            {**row, "generations/total": generated.get(row.get("step"), 0)}
            for row in self.runs[run].evals
            if not row.get("final")
        ]
        line = self._line(run, "held out", 1, rows, "score")
        return replace(line, lows=_column(rows, "low"), highs=_column(rows, "high"))


def _total_time(row: Row) -> float:
    return math.fsum(number(row.get(f"time/{name}")) or 0.0 for name in _PHASES)
