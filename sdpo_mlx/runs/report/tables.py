"""The tables of a report: notes, scores, problems, feedback, skips, metrics, settings."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sdpo_mlx.runs.events import number
from sdpo_mlx.runs.report.collect import RunData, percent
from sdpo_mlx.runs.tracking.base import flat

MAX_ROWS = 200  # of one table
MAX_EVALUATIONS = 8  # columns
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # caption, heads, rows


def tables(run: RunData) -> list[Table]:
    """Return all tables that have a row."""
    found = [table(run) for table in (notes, scores, held_out, problems, kinds, skips, steps, settings)]
    return [table for table in found if table[2]]


def scores(run: RunData) -> Table:
    """Held-out scores; the final ones have their own seeds."""
    rows: list[tuple[str, ...]] = []
    for row in run.evals:
        final = {"none": "before training", "best": f"best adapter (step {row.get('adapter_step')})"}
        which = final.get(str(row.get("adapter")), "final") if row.get("final") else "during training"
        interval = f"{percent(row.get('low'))} to {percent(row.get('high'))}"
        score, success = percent(row.get("score")), percent(row.get("pass@1"))
        rows.append((str(row.get("step")), which, score, interval, success, str(row.get("n", ""))))
    return "Held-out scores", ("step", "which", run.score_name, "95 % interval", "pass@1", "problems"), rows


def held_out(run: RunData) -> Table:
    """Mean reward of each held-out problem over time, the least at the end first."""
    evals = [row for row in run.evals if not row.get("final") and isinstance(row.get("rewards"), dict)]
    gap = (len(evals) - 1) / (MAX_EVALUATIONS - 1)
    evals = evals if gap <= 1 else [evals[round(i * gap)] for i in range(MAX_EVALUATIONS)]
    found = [{str(name): _mean(each) for name, each in row["rewards"].items()} for row in evals]
    names = sorted(found[-1], key=lambda name: (found[-1][name] or 0.0, name)) if found else []
    rows = [(name, *(percent(rewards.get(name)) for rewards in found)) for name in names[:MAX_ROWS]]
    return _cut("Held-out problems over time", len(names)), ("problem", *(f"step {row['step']}" for row in evals)), rows


def _mean(rewards: Any) -> float | None:
    found = [number(each) for each in rewards] if isinstance(rewards, list) else []
    known = [each for each in found if each is not None]
    return sum(known) / len(known) if known else None


def problems(run: RunData) -> Table:
    """Successes among the stored rollouts, hardest problem first, at its first and at its last step."""
    by_problem: dict[str, dict[int, list[bool]]] = {}
    for row in run.outcomes:
        by_problem.setdefault(row["problem"], {}).setdefault(row["step"], []).append(row["success"])
    successes = {name: [success for each in steps.values() for success in each] for name, steps in by_problem.items()}
    hardest = sorted(by_problem, key=lambda name: (sum(successes[name]) / len(successes[name]), name))[:MAX_ROWS]
    rows: list[tuple[str, ...]] = []
    for name in hardest:
        steps, every = by_problem[name], successes[name]
        first, last = (f"{sum(steps[step])}/{len(steps[step])} (step {step})" for step in (min(steps), max(steps)))
        rate, last = percent(sum(every) / len(every)), "-" if len(steps) == 1 else last
        rows.append((name, str(len(every)), rate, first, last, str(len(steps))))
    heads = ("problem", "rollouts stored", "success", "first step", "last step", "steps")
    return _cut("Problems, hardest first", len(by_problem)), heads, rows


def _cut(caption: str, count: int) -> str:
    return caption if count <= MAX_ROWS else f"{caption}, {MAX_ROWS} of {count:,}"


def kinds(run: RunData) -> Table:
    """Kinds of feedback in each third of the run."""
    steps = sorted({row["step"] for row in run.outcomes})
    thirds = [steps[len(steps) * i // 3 : len(steps) * (i + 1) // 3] for i in range(3)]
    counted = [Counter(row["kind"] for row in run.outcomes if row["step"] in third) for third in thirds]
    names = sorted({kind for counter in counted for kind in counter})
    rows = [(kind, *(percent(c[kind] / c.total()) if c else "-" for c in counted)) for kind in names]
    heads = (f"steps {third[0]} to {third[-1]}" if third else "-" for third in thirds)
    return "Kinds of feedback over time", ("kind", *heads), rows


def skips(run: RunData) -> Table:
    """Rollouts that were not learned from, by reason."""
    names = sorted({name for row in run.steps for name in row if str(name).startswith("skip/")})
    totals = {name: sum(int(row.get(name) or 0) for row in run.steps) for name in names}
    rows: list[tuple[str, ...]] = [(name.removeprefix("skip/"), str(total)) for name, total in totals.items() if total]
    return "Rollouts not learned from", ("reason", "rollouts"), rows


def notes(run: RunData) -> Table:
    """The probe, warnings, declines, resumes, the sandbox, and files that could not be read."""
    rows: list[tuple[str, ...]] = [("-", f"the folder: {problem}") for problem in run.problems]
    if run.manifest.get("sandbox"):
        rows.append(("-", f"sandbox: {run.manifest['sandbox']}"))
    for row in run.notes:
        step, best = str(row.get("step")), row.get("best_step")
        if row.get("type") in ("warning", "decline"):
            rows.append((step, str(row.get("message", ""))))
        elif row.get("type") == "probe":
            rows.append((step, f"probe: {row.get('verdict')}. {row.get('sentence')}"))
        elif row.get("type") == "resumed":
            rows.append((step, "resumed after this step"))
        else:
            rows.append((step, "finished" if best is None else f"finished; best step {best}"))
    return _cut("Notes", len(rows)), ("step", "what"), rows[:MAX_ROWS]


def steps(run: RunData) -> Table:
    """The values of the charts."""
    columns = {
        "success": ("success/rate", percent),
        "divergence": ("divergence/mean", _figure),
        "length": ("length/mean", _figure),
        "entropy": ("entropy", _figure),
        "truncated": ("length/truncated", percent),
        "leakage": ("leakage/rate", percent),
        "self-teacher": ("teacher/success", percent),
        "rollouts": ("generations/total", lambda value: f"{value:,}" if isinstance(value, int) else "-"),
    }
    every = -(-len(run.steps) // MAX_ROWS) or 1
    rows = [
        (str(row.get("step")), *(text(row.get(name)) for name, text in columns.values())) for row in run.steps[::every]
    ]
    caption = "Metrics of the steps" if every == 1 else f"Metrics of every {every}th step"
    return caption, ("step", *columns), rows


def settings(run: RunData) -> Table:
    """Every setting, resolved."""
    rows: list[tuple[str, ...]] = [(key, str(value)) for key, value in flat(run.config)]
    return "Settings", ("key", "value"), rows


def _figure(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "-"
