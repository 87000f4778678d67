"""The tables of a report: problems, feedback, skips, settings, and what a reader should know of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sdpo_mlx.runs.report.collect import RunData

MOST_ROWS = 200  # of one table
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # caption, heads, rows


def tables(story: RunData) -> list[Table]:
    """All tables that have a row."""
    made = (notes, scores, problems, kinds, skips, steps, settings)
    found = [table(story) for table in made]
    return [table for table in found if table[2]]


def scores(story: RunData) -> Table:
    """Held-out scores; the final ones use seeds of their own."""
    rows: list[tuple[str, ...]] = []
    for row in story.evals:
        final = {"none": "before training", "best": f"best adapter (step {row.get('adapter_step')})"}
        which = final.get(str(row.get("adapter")), "final") if row.get("final") else "while training"
        span = f"{_percent(row.get('low'))} to {_percent(row.get('high'))}"
        rows.append((str(row.get("step")), which, _percent(row.get("score")), span, str(row.get("n", ""))))
    return "Held-out scores", ("step", "which", "score", "95 % interval", "problems"), rows


def problems(story: RunData) -> Table:
    """Hardest first: successes among the answers that were kept, and how the first time compares with the last."""
    by_problem: dict[str, dict[int, list[bool]]] = {}
    for row in story.counts:
        by_problem.setdefault(row["problem"], {}).setdefault(row["step"], []).append(row["success"])
    answers = {name: [success for each in times.values() for success in each] for name, times in by_problem.items()}
    hardest = sorted(by_problem, key=lambda name: (sum(answers[name]) / len(answers[name]), name))[:MOST_ROWS]
    rows: list[tuple[str, ...]] = []
    for name in hardest:
        times, every = by_problem[name], answers[name]
        first, last = (f"{sum(times[step])}/{len(times[step])} (step {step})" for step in (min(times), max(times)))
        once = len(times) == 1
        rows.append(
            (name, str(len(every)), _percent(sum(every) / len(every)), first, "-" if once else last, str(len(times)))
        )
    heads = ("problem", "answers kept", "success", "first time", "last time", "times")
    return _cut("Problems, hardest first", len(by_problem)), heads, rows


def _cut(caption: str, count: int) -> str:
    return caption if count <= MOST_ROWS else f"{caption}, {MOST_ROWS} of {count:,}"


def kinds(story: RunData) -> Table:
    """What the environment said, in thirds of the run."""
    steps = sorted({row["step"] for row in story.counts})
    thirds = [{*steps[len(steps) * i // 3 : len(steps) * (i + 1) // 3]} for i in range(3)]
    counted = [Counter(row["kind"] for row in story.counts if row["step"] in third) for third in thirds]
    names = sorted({kind for counter in counted for kind in counter})
    rows = [
        (kind, *(_percent(c[kind] / total) if (total := sum(c.values())) else "-" for c in counted)) for kind in names
    ]
    ends = [(min(third), max(third)) if third else None for third in thirds]
    heads = (f"steps {span[0]} to {span[1]}" if span else "-" for span in ends)
    return "Kinds of feedback over time", ("kind", *heads), rows


def skips(story: RunData) -> Table:
    """Why answers taught nothing."""
    names = sorted({name for row in story.steps for name in row if str(name).startswith("skip/")})
    totals = {name: sum(int(row.get(name) or 0) for row in story.steps) for name in names}
    rows: list[tuple[str, ...]] = [(name.removeprefix("skip/"), str(total)) for name, total in totals.items() if total]
    return "Answers that taught nothing", ("reason", "answers"), rows


def notes(story: RunData) -> Table:
    """Warnings, resumes, the sandbox, and what of the folder could not be read."""
    rows: list[tuple[str, ...]] = [("-", f"the folder: {fault}") for fault in story.problems]
    if story.manifest.get("sandbox"):
        rows.append(("-", f"sandbox: {story.manifest['sandbox']}"))
    for row in story.notes:
        if row.get("type") == "warning":
            rows.append((str(row.get("step")), str(row.get("message", ""))))
        elif row.get("type") == "resumed":
            rows.append((str(row.get("step")), "resumed after this step"))
        else:
            best = row.get("best_step")
            rows.append((str(row.get("step")), "finished" if best is None else f"finished; best step {best}"))
    return _cut("What to know", len(rows)), ("step", "what"), rows[:MOST_ROWS]


def steps(story: RunData) -> Table:
    """The curves' figures as text."""
    names = {
        "success": ("success/rate", _percent),
        "divergence": ("divergence/mean", _figure),
        "length": ("length/mean", _figure),
        "entropy": ("entropy", _figure),
        "self-teacher": ("teacher/success", _percent),
        "answers": ("generations/total", _whole),
    }
    every = -(-len(story.steps) // MOST_ROWS) or 1
    rows = [
        (str(row.get("step")), *(said(row.get(name)) for name, said in names.values())) for row in story.steps[::every]
    ]
    caption = "Figures of the steps" if every == 1 else f"Figures of every {every}th step"
    return caption, ("step", *names), rows


def settings(story: RunData) -> Table:
    """Every setting, resolved."""
    rows: list[tuple[str, ...]] = [(key, str(value)) for key, value in _leaves(story.config)]
    return "Settings", ("key", "value"), rows


def _leaves(tree: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        found += _leaves(value, f"{before}{name}.") if isinstance(value, Mapping) else [(f"{before}{name}", value)]
    return found


def _figure(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "-"


def _whole(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"


def _percent(share: Any) -> str:
    return f"{100 * share:.1f} %" if isinstance(share, int | float) else "-"
