"""The tables of a report: problems, feedback, skips, settings, and what a reader should know of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_mlx.report.reading import Row, Story

MOST_PROBLEMS = 200
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # caption, heads, rows


def tables(story: Story) -> list[Table]:
    """All tables that have a row."""
    found = [scores(story), problems(story), kinds(story), skips(story), notes(story), settings(story)]
    return [table for table in found if table[2]]


def scores(story: Story) -> Table:
    """Held-out scores; the final ones use seeds of their own."""
    rows: list[tuple[str, ...]] = []
    for row in story.evals:
        final = {"none": "before training", "best": f"best adapter (step {row.get('adapter_step')})"}
        which = final.get(str(row.get("adapter")), "final") if row.get("final") else "while training"
        span = f"{_percent(row.get('low'))} to {_percent(row.get('high'))}"
        rows.append((str(row.get("step")), which, _percent(row.get("score")), span, str(row.get("n", ""))))
    return "Held-out scores", ("step", "which", "score", "95 % interval", "problems"), rows


def problems(story: Story) -> Table:
    """Hardest first: successes in the first and in the second half of a problem's answers that were kept."""
    by_problem: dict[str, list[Row]] = {}
    for row in story.counts:
        by_problem.setdefault(row["problem"], []).append(row)

    def share(rows: Sequence[Row]) -> float:
        return sum(row["success"] for row in rows) / len(rows) if rows else 0.0

    hardest = sorted(by_problem.items(), key=lambda each: (share(each[1]), each[0]))
    rows: list[tuple[str, ...]] = []
    for name, answers in hardest[:MOST_PROBLEMS]:
        half = (len(answers) + 1) // 2
        early, late = answers[:half], answers[half:]
        progress = (_percent(share(early)), _percent(share(late)) if late else "-")
        rows.append((name, str(len(answers)), _percent(share(answers)), *progress))
    return "Problems, hardest first", ("problem", "answers kept", "success", "first half", "second half"), rows


def kinds(story: Story) -> Table:
    """What the environment said, in thirds of the run."""
    steps = sorted({row["step"] for row in story.counts})
    thirds = [{*steps[len(steps) * i // 3 : len(steps) * (i + 1) // 3]} for i in range(3)]
    counted = [Counter(row["kind"] for row in story.counts if row["step"] in third) for third in thirds]
    names = sorted({kind for counter in counted for kind in counter})
    rows = [
        (kind, *(_percent(c[kind] / total) if (total := sum(c.values())) else "-" for c in counted)) for kind in names
    ]
    return "Kinds of feedback", ("kind", "first third", "middle", "last third"), rows


def skips(story: Story) -> Table:
    """Why answers taught nothing."""
    names = sorted({name for row in story.steps for name in row if str(name).startswith("skip/")})
    totals = {name: sum(int(row.get(name) or 0) for row in story.steps) for name in names}
    rows: list[tuple[str, ...]] = [(name.removeprefix("skip/"), str(total)) for name, total in totals.items() if total]
    return "Answers that taught nothing", ("reason", "answers"), rows


def notes(story: Story) -> Table:
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
            rows.append((str(row.get("step")), f"finished; best step {row.get('best_step')}"))
    return "What to know", ("step", "what"), rows


def settings(story: Story) -> Table:
    """Every setting, resolved."""
    rows: list[tuple[str, ...]] = [(key, str(value)) for key, value in _leaves(story.config)]
    return "Settings", ("key", "value"), rows


def _leaves(tree: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        found += _leaves(value, f"{before}{name}.") if isinstance(value, Mapping) else [(f"{before}{name}", value)]
    return found


def _percent(share: Any) -> str:
    return f"{100 * share:.1f} %" if isinstance(share, int | float) else "-"
