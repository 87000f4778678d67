"""The live view of a run on a terminal, drawn on stderr by rich; foreign text goes in as `Text`, never markup."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from sdpo_cli.live import context_words
from sdpo_cli.progress import Progress
from sdpo_cli.render import duration, number, percent, rate, size, span, sparkline

from sdpo_mlx.run import Observer
from sdpo_mlx.text import display
from sdpo_mlx.types import RolloutGroup

SAMPLE_LINES, SAMPLE_CHARACTERS = 6, 400


@contextmanager
def live_view(progress: Progress) -> Iterator[Observer]:
    """Draw until the block ends; the last picture stays."""

    def observe(event: Mapping[str, Any], groups: Sequence[RolloutGroup]) -> None:
        progress.observe(event, groups)

    with Live(get_renderable=lambda: picture(progress), console=Console(stderr=True), refresh_per_second=4):
        yield observe


def picture(progress: Progress) -> RenderableType:
    """Everything about the run at this moment."""
    header = progress.header
    rows = Table.grid(padding=(0, 2), expand=True)
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(ratio=1)
    for name, shown in [("step", _steps(progress)), *_figures(progress)]:
        rows.add_row(name, shown)
    parts: list[RenderableType] = [rows, *_sample(progress)]
    parts += [Text(f"warning: {display(warning)}", style="yellow") for warning in progress.warnings]
    title = f"sdpo  {header.model} on {header.task}  {header.objective}, teacher {header.teacher}  {header.device}"
    return Panel(Group(*parts), title=Text(display(title)), subtitle=Text(display(header.out)), title_align="left")


def _steps(progress: Progress) -> RenderableType:
    left = progress.seconds_left()
    bar = Table.grid(padding=(0, 1))
    count = Text(f"{progress.step}/{progress.header.steps}")
    remaining = Text("" if left is None else f"{duration(left)} left")
    bar.add_row(count, ProgressBar(total=max(1, progress.header.steps), completed=progress.step, width=30), remaining)
    return bar


def _figures(progress: Progress) -> list[tuple[str, RenderableType]]:
    latest = progress.latest
    generation, learning = progress.speed("generated", "generate"), progress.speed("learned", "teacher", "learn")
    loss = f"{number(latest.get('loss'))}   divergence {number(latest.get('divergence/mean'))}"
    success = Text(f"{percent(latest.get('success/rate'))}  ")
    success.append(sparkline(progress.success), style="green")
    return [
        ("success", success),
        ("held-out", Text(_scores(progress))),
        ("loss", Text(loss)),
        ("context", Text(display(context_words(progress)))),
        ("tokens/s", Text(f"generation {rate(generation)}   learning {rate(learning)}")),
        ("memory", Text(f"peak {size(latest.get('memory/peak') or 0)}")),
    ]


def _scores(progress: Progress) -> str:
    found = []
    if progress.before is not None:
        found.append(f"before {percent(progress.before.get('score'))}")
    if progress.evals:
        last = progress.evals[-1]
        found.append(f"step {last['step']}: {percent(last.get('score'))}{span(last.get('low'), last.get('high'))}")
    if progress.best is not None:
        found.append(f"best {percent(progress.best.get('score'))} at step {progress.best['step']}")
    return "   ".join(found) or "-"


def _sample(progress: Progress) -> list[RenderableType]:
    """One answer with its verdict, cut to a few lines."""
    if progress.sample is None:
        return []
    told = [("problem", progress.sample.problem), ("answer", progress.sample.answer)]
    told.append((progress.sample.kind, progress.sample.feedback))
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column()
    for name, text in told:
        rows.add_row(Text(display(name)), Text(_short(text)))
    return [Text(""), rows]


def _short(text: str) -> str:
    lines = display(text.strip(), SAMPLE_CHARACTERS).split("\n")
    return "\n".join([*lines[:SAMPLE_LINES], *(["…"] if len(lines) > SAMPLE_LINES else [])])
