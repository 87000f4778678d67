"""The charts of one or several runs, each against steps and against rollouts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sdpo_mlx.runs.events import number
from sdpo_mlx.runs.report.collect import Row, RunData
from sdpo_mlx.runs.report.svg import Series, line_chart

AXES = {"step": "steps", "generations/total": "rollouts"}


def charts(runs: Sequence[RunData], axis: str) -> list[str]:
    """Return one SVG for each chart that has data; `axis` is the event field on the x-axis, a key of `AXES`."""
    lines = _Lines(runs, axis)
    share = (0.0, 1.0)
    success = [line for n in range(len(runs)) for line in (lines.training(n), lines.held_out(n))]
    # Without a self-teacher the divergence is always 0.
    taught = [run.steps if run.has_teacher else [] for run in runs]
    # Only the steps in which the self-teacher was sampled too.
    both_sampled = [[row for row in run.steps if number(row.get("teacher/answers"))] for run in runs]
    roles = {"teacher/success": "self-teacher", "teacher/student": "student"}
    context = {"teacher/with_demonstration": "demonstration", "teacher/with_feedback": "feedback"}
    faults = {"length/truncated": "truncated", "leakage/rate": "repeats the teacher's context"}
    divergence, pairs = lines.several({"divergence/mean": ""}, taught), lines.several(roles, both_sampled)
    phases = {f"time/{name}": name for name in ("generate", "grade", "teacher", "learn", "other")}
    times = lines.several(phases)
    if len(runs) > 1:
        sums = [[math.fsum(number(row.get(name)) or 0.0 for name in phases) for row in run.steps] for run in runs]
        times = [replace(line, ys=ys) for line, ys in zip(lines.several({"time/other": ""}), sums, strict=True)]
    memory = [replace(line, ys=[y / 2**20 for y in line.ys]) for line in lines.several({"memory/peak": ""})]
    drawn = [
        _chart("Success, training and held out", "success rate", success, axis, share),
        _chart("Divergence of student and self-teacher", "mean per token", divergence, axis),
        _chart("Student and self-teacher on the same problems", "success rate", pairs, axis, share),
        _chart("Rollouts with a teacher context", "share", lines.several(context, taught), axis, share),
        _chart("Length of a rollout", "tokens", lines.several({"length/mean": ""}), axis),
        _chart("Rollouts that are truncated, and that leak", "share", lines.several(faults), axis, share),
        _chart("Entropy of the student", "nats", lines.several({"entropy": ""}), axis),
        _chart("Time of a step", "seconds", times, axis),
        _chart("Peak memory", "MB", memory, axis),
    ]
    return [svg for svg in drawn if svg]


def _chart(
    title: str, y_label: str, series: list[Series], axis: str, y_range: tuple[float, float] | None = None
) -> str:
    shown = [each for each in series if any(map(math.isfinite, each.ys))]
    top = max((y for each in shown for y in each.ys if math.isfinite(y)), default=0.0)
    y_range = y_range or (0.0, top * 1.05 or 1.0)  # from 0, so that small changes do not look large
    labels = {"title": title, "x_label": AXES[axis], "y_label": y_label}
    return line_chart(shown, **labels, y_range=y_range, values=True) if shown else ""


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [math.nan if (value := number(row.get(name))) is None else value for row in rows]


@dataclass(frozen=True)
class _Lines:
    """The lines of each chart: with several runs the colour stands for the run, the dash for the quantity."""

    runs: Sequence[RunData]
    axis: str

    def several(self, names: Mapping[str, str], rows: Sequence[Sequence[Row]] | None = None) -> list[Series]:
        """Return a line for each run and quantity, by name and label; `rows` are by default each run's steps."""
        return [
            self._line(n, label, at, each, name)
            for n, each in enumerate([run.steps for run in self.runs] if rows is None else rows)
            for at, (name, label) in enumerate(names.items())
        ]

    def _line(self, run: int, label: str, at: int, rows: Sequence[Row], name: str) -> Series:
        several, run_name = len(self.runs) > 1, self.runs[run].name
        full = " ".join(part for part in (run_name if several else "", label) if part) or run_name
        return Series(full, _column(rows, self.axis), _column(rows, name), colour=run if several else at, dash=at)

    def training(self, run: int) -> Series:
        """Return the success rate of the steps; those of older runs have no interval."""
        rows = self.runs[run].steps
        line = self._line(run, "training", 0, rows, "success/rate")
        return replace(line, lows=_column(rows, "success/low"), highs=_column(rows, "success/high"))

    def held_out(self, run: int) -> Series:
        """Return the scores on held-out problems during training."""
        generated = {row.get("step"): row.get("generations/total") for row in self.runs[run].steps}
        rows = [
            {**row, "generations/total": generated.get(row.get("step"), 0)}
            for row in self.runs[run].evals
            if not row.get("final")
        ]
        label = "held out" if self.runs[run].score_name == "success" else "held out (mean reward)"
        line = self._line(run, label, 1, rows, "score")
        return replace(line, lows=_column(rows, "low"), highs=_column(rows, "high"))
