"""`sdpo solve --every-problem`: discovery@k over all problems of a task."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_cli.terminal import render
from sdpo_cli.terminal.progress import TaskProgress

if TYPE_CHECKING:
    from sdpo_mlx.rl.components import Components
    from sdpo_mlx.training.discovery import SearchRecord
    from sdpo_mlx.training.test_time import Budget, Method

SEARCHES, RESULT, CHART = "searches.jsonl", "discovery.json", "discovery.svg"
SHARES = (0.25, 0.5, 0.9)


def measured(
    components: Components,
    methods: Sequence[Method],
    seeds: int,
    budget: Budget,
    out: Path | None,
    interrupted: Callable[[], bool],
) -> tuple[dict[str, Any], list[str]]:
    """Run the searches that the folder lacks and write the curves there; return the document and its lines."""
    from sdpo_mlx.core.errors import StorageError
    from sdpo_mlx.core.storage import plain, trouble
    from sdpo_mlx.runs.report.svg import Series, line_chart
    from sdpo_mlx.training.discovery import Plan, measure

    problems = list(
        {each.id: each for split in ("train", "held_out") for each in components.task.problems(split)}.values()
    )
    first = components.cfg.train.seed
    plan = Plan(problems, methods, range(first, first + seeds), budget)
    folder = out or Path("discovery")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create the folder: {error.strerror}", where=str(folder)) from error
    total = len(problems) * len(methods) * seeds
    progress = TaskProgress("searches")
    progress.update(0, total)

    def show(record: SearchRecord) -> None:
        progress.update(progress.done + 1, total)
        end = f"solved by attempt {record.solved}" if record.solved else f"not solved in {record.attempts} attempts"
        render.message(f"{progress.summary()}  {record.method}  {record.problem}  seed {record.seed}: {end}")

    records = measure(components, plan, folder / SEARCHES, show, interrupted)
    content = as_document(components, records, budget)
    series = [
        Series(name, *([point[key] for point in found["curve"]] for key in ("k", "discovery", "low", "high")))
        for name, found in content["methods"].items()
    ]
    try:
        (folder / RESULT).write_text(json.dumps(plain(content), indent=1) + "\n", encoding="utf-8")
        title = f"discovery@k on {components.cfg.task.name}"
        labels = {"title": title, "x_label": "attempts", "y_label": "probability of a success"}
        (folder / CHART).write_text(line_chart(series, **labels, y_range=(0, 1)), encoding="utf-8")
    except OSError as error:
        raise trouble(error, folder) from error
    return content, [*as_lines(content), f"wrote {folder / RESULT} and {folder / CHART}"]


def as_document(components: Components, records: Sequence[SearchRecord], budget: Budget) -> dict[str, Any]:
    """The curve of each method, and the attempts that each needs for the same probability."""
    from sdpo_mlx.training.discovery import attempts_for, by_method, curve

    ks = sorted({*(2**i for i in range(budget.attempts.bit_length())), budget.attempts})
    return {
        "model": components.cfg.model.name,
        "weights": components.model.weights_sha256,
        "task": components.cfg.task.name,
        "feedback": components.cfg.task.feedback,
        "problems": len({record.problem for record in records}),
        "seeds": len({record.seed for record in records}),
        "methods": {
            method: {
                "curve": [{"k": k, "discovery": share, "low": low, "high": high} for k, share, (low, high) in points],
                "attempts for": {str(share): attempts_for(found, share) for share in SHARES},
                "searches": len(found),
            }
            for method, found in by_method(records).items()
            if (points := curve(found, ks))
        },
    }


def as_lines(content: dict[str, Any]) -> list[str]:
    """A table of the curves, one column per method."""
    methods = content["methods"]
    ks = sorted({point["k"] for found in methods.values() for point in found["curve"]})
    cells = [
        {p["k"]: render.percent(p["discovery"], p["low"], p["high"]) for p in found["curve"]}
        for found in methods.values()
    ]
    rows = [(str(k), *(column.get(k, "-") for column in cells)) for k in ks]
    need = [
        (f"for {share}", *(str(found["attempts for"][share] or "not reached") for found in methods.values()))
        for share in map(str, SHARES)
    ]
    counts = f"{render.plural(content['problems'], 'problem')}, {render.plural(content['seeds'], 'seed')} each"
    head = f"{content['task']}: {counts}; discovery@k, 95 % interval"
    return [head, *render.table(("attempts", *methods), rows), "", *render.table(("attempts", *methods), need)]
