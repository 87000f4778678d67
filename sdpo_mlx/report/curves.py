"""The curves of one or several runs, each against steps and against sampled answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdpo_mlx.chart import Series, line_chart
from sdpo_mlx.intervals import wilson
from sdpo_mlx.report.reading import Row, Story

Values = Callable[[Row], float | None]
AXES = {"step": "steps", "generations/total": "sampled answers"}


def charts(stories: Sequence[Story], axis: str) -> list[str]:
    """One SVG a question; `axis` is the event's name on the x-axis, a key of `AXES`."""
    x_label = AXES[axis]
    drawn = [
        _chart("Success, training and held out", "share", _success(stories, axis), x_label, (0.0, 1.0)),
        _chart(
            "Divergence of student and self-teacher", "mean a token", _each(stories, axis, "divergence/mean"), x_label
        ),
        _chart("Length of an answer", "tokens", _each(stories, axis, "length/mean"), x_label),
        _chart("Entropy of the student", "nats", _each(stories, axis, "entropy"), x_label),
        _chart("Answers with a context", "share", _context(stories, axis), x_label, (0.0, 1.0)),
        _chart(
            "Student and self-teacher on the same problems", "share right", _roles(stories, axis), x_label, (0.0, 1.0)
        ),
        _chart("Time of a step", "seconds", _phases(stories, axis, "time", _PHASES, 1.0), x_label),
        _chart("Peak memory", "MB", _phases(stories, axis, "memory", ("peak",), 2.0**20), x_label),
    ]
    return [svg for svg in drawn if svg]


_CONTEXTS = {"teacher/with_demonstration": "a demonstration", "teacher/with_feedback": "feedback"}
_PHASES = ("generate", "grade", "teacher", "learn", "other")


def _chart(title: str, y_label: str, series: list[Series], x_label: str, y_range: Any = None) -> str:
    shown = [each for each in series if any(_known(y) is not None for y in each.ys)]
    top = max((y for each in shown for y in each.ys if _known(y) is not None), default=0.0)
    span = y_range or (0.0, top * 1.05 or 1.0)  # from 0, so that no small change looks large
    return line_chart(shown, title=title, x_label=x_label, y_label=y_label, y_range=span) if shown else ""


def _known(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [math.nan if (value := _known(row.get(name))) is None else value for row in rows]


def _named(story: Story, stories: Sequence[Story], what: str = "") -> str:
    """What tells a line apart: the run, the figure, or both."""
    parts = [story.name if len(stories) > 1 else "", what]
    return " ".join(part for part in parts if part) or story.name


def _each(stories: Sequence[Story], axis: str, name: str) -> list[Series]:
    return [Series(_named(s, stories), _column(s.steps, axis), _column(s.steps, name)) for s in stories]


def _phases(stories: Sequence[Story], axis: str, group: str, names: Sequence[str], unit: float) -> list[Series]:
    """A line a phase for one run; their sum for several."""
    if len(stories) == 1:
        story = stories[0]
        columns = {name: [y / unit for y in _column(story.steps, f"{group}/{name}")] for name in names}
        return [Series(name, _column(story.steps, axis), ys) for name, ys in columns.items()]
    return [
        Series(s.name, _column(s.steps, axis), [_sum(row, group, names) / unit for row in s.steps]) for s in stories
    ]


def _sum(row: Row, group: str, names: Sequence[str]) -> float:
    return math.fsum(_known(row.get(f"{group}/{name}")) or 0.0 for name in names)


def _context(stories: Sequence[Story], axis: str) -> list[Series]:
    found = []
    for story in stories:
        xs = _column(story.steps, axis)
        for name, what in (
            ("teacher/with_demonstration", "a sibling's success"),
            ("teacher/with_feedback", "feedback"),
        ):
            found.append(Series(_named(story, stories, what), xs, _column(story.steps, name)))
    return found


def _roles(stories: Sequence[Story], axis: str) -> list[Series]:
    """Where the teacher answered too: its share of successes, and the student's without the context."""
    found = []
    for story in stories:
        rows = [row for row in story.steps if _known(row.get("teacher/answers"))]
        for name, what in (("teacher/success", "self-teacher"), ("teacher/student", "student")):
            found.append(Series(_named(story, stories, what), _column(rows, axis), _column(rows, name)))
    return found


def _success(stories: Sequence[Story], axis: str) -> list[Series]:
    return [each for story in stories for each in (_training(story, stories, axis), _held_out(story, stories, axis))]


def _training(story: Story, stories: Sequence[Story], axis: str) -> Series:
    """The share of successes with Wilson's interval over the step's answers."""
    rates, ends, before = _column(story.steps, "success/rate"), [], 0.0
    for rate, total in zip(rates, _column(story.steps, "generations/total"), strict=True):
        n, before = total - before, total
        fits = math.isfinite(rate) and math.isfinite(n) and n >= 1
        ends.append(wilson(min(rate * n, n), round(n)) if fits else (math.nan, math.nan))
    lows, highs = [low for low, _ in ends], [high for _, high in ends]
    return Series(_named(story, stories, "training"), _column(story.steps, axis), rates, lows, highs)


def _held_out(story: Story, stories: Sequence[Story], axis: str) -> Series:
    rows = [row for row in story.evals if not row.get("final")]
    generated = {row.get("step"): row.get("generations/total") for row in story.steps}
    placed: list[Mapping[str, Any]] = [{**row, "generations/total": generated.get(row.get("step"), 0)} for row in rows]
    columns = (_column(placed, name) for name in (axis, "score", "low", "high"))
    return Series(_named(story, stories, "held out"), *columns)
