"""The live view of a run on a terminal, drawn on stderr by rich; foreign text goes in as `Text`, never markup.

A line never wraps and the picture is never higher than the terminal: what there is no room for is left out, the sample
first, then the figures that matter least.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.text import Text
from sdpo_cli.terminal.live import context_words
from sdpo_cli.terminal.progress import Progress
from sdpo_cli.terminal.render import duration, number, percent, rate, size, span, sparkline
from sdpo_cli.terminal.sample_view import MOST_LINES, sample_lines, steady
from sdpo_cli.terminal.waiting import drawing

from sdpo_mlx.training.session import OnEvent
from sdpo_mlx.types import RolloutGroup

FRAME = 2  # lines above and below
FRAMED = 6  # a terminal lower than that shows no frame
NARROWEST = 16  # columns with a frame around them
LABELLED = 36  # columns from which on the figures stand in a column of their own
BAR = 30
# What stays when there is no room for all, the most needed first.
NEEDED = ("step", "now", "success", "held-out", "loss", "warning", "context", "tokens/s", "memory")

Row = tuple[str, Text]


@contextmanager
def live_view(progress: Progress) -> Iterator[OnEvent]:
    """Draw until the block ends; the last picture stays, without what was being done."""

    def observe(event: Mapping[str, Any], groups: Sequence[RolloutGroup]) -> None:
        progress.observe(event, groups)

    with drawing(Picture(progress)):
        try:
            yield observe
        finally:
            progress.work.doing("")


class Picture:
    """Everything about the run at this moment that the terminal has room for."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.size.height - 1  # the last line is the cursor's
        if height < FRAMED or width < NARROWEST:
            yield from self._bare(width, height)
            return
        inner = width - 4
        lines = self._lines(console, inner, height - FRAME)
        yield Panel(
            Group(*lines),
            title=_fitting(_titles(self.progress), width - 8),
            subtitle=_fitting(_places(self.progress), width - 8),
            title_align="left",
            width=width,
        )

    def _bare(self, width: int, height: int) -> Iterator[Text]:
        rows = [_fitting(_titles(self.progress), width)]
        rows += [_line(row, width, 0) for row in self._kept(width, max(1, height - 1))]
        yield from rows[: max(1, height)] if height > 1 else rows[1:2]

    def _lines(self, console: Console, width: int, height: int) -> list[Text]:
        label = max(map(len, NEEDED)) if width >= LABELLED else 0
        kept = self._kept(width - (label + 2 if label else 0), height)
        figures = [_line(row, width, label) for row in kept if row[0] != "warning"]
        warnings = [_line(row, width, label) for row in kept if row[0] == "warning"]
        room = height - len(figures) - len(warnings)
        sample = self.progress.sample
        shown = sample_lines(console, sample, width, min(MOST_LINES, room - 1)) if sample is not None else []
        return [*figures, *([Text(""), *shown] if shown else []), *warnings]

    def _kept(self, width: int, height: int) -> list[Row]:
        rows = [row for row in _rows(self.progress, width) if row[1].plain]
        wanted = sorted(range(len(rows)), key=lambda at: (NEEDED.index(rows[at][0]), -at))
        return [rows[at] for at in sorted(wanted[: max(1, height)])]


def _titles(progress: Progress) -> list[str]:
    header = progress.header
    short = PurePath(header.model).name or header.model
    return [
        f"sdpo  {header.model} on {header.task}  {header.objective}, teacher {header.teacher}  {header.device}",
        f"sdpo  {header.model} on {header.task}  {header.objective}, teacher {header.teacher}",
        f"sdpo  {header.model} on {header.task}",
        f"sdpo  {short} on {header.task}",
        f"sdpo  {short}",
    ]


def _places(progress: Progress) -> list[str]:
    out = progress.header.out
    return [out, f"…/{PurePath(out).name}"]


def _rows(progress: Progress, width: int) -> list[Row]:
    latest = progress.latest
    generation, learning = progress.speed("generated", "generate"), progress.speed("learned", "teacher", "learn")
    loss, moved = number(latest.get("loss")), number(latest.get("divergence/mean"))
    held = f"peak {size(latest['memory/peak'])}" if latest.get("memory/peak") else "-"

    def of(*texts: str) -> Text:
        return _fitting(texts, width)

    return [
        ("step", _steps(progress, width)),
        ("now", _now(progress, width)),
        ("success", _success(progress, width)),
        ("held-out", of(*_scores(progress))),
        ("loss", of(f"{loss}   divergence {moved}", loss)),
        ("context", of(context_words(progress), percent(progress.with_context()))),
        ("tokens/s", of(f"generation {rate(generation)}   learning {rate(learning)}", f"{rate(generation)}")),
        ("memory", of(held)),
        *(("warning", of(warning)) for warning in progress.warnings),
    ]


def _steps(progress: Progress, width: int) -> Text:
    """`3/15 ━━━━━━╺━━━━ 0:42 left`, without the bar where it would be too short to read."""
    done, steps, left = progress.step, max(1, progress.header.steps), progress.seconds_left()
    count, rest = f"{done}/{progress.header.steps}", f"{duration(left)} left" if left else ""
    room = min(BAR, width - len(count) - len(rest) - 2)
    if room < 5:
        return _fitting([f"{count}  {rest}", f"{count} {rest.removesuffix(' left')}", count], width)
    full = min(room, room * done // steps)
    return Text.assemble(f"{count} ", ("━" * full, "green"), ("─" * (room - full), "dim"), f" {rest}")


def _now(progress: Progress, width: int) -> Text:
    pace = progress.work.pace
    if pace is None:
        return Text("")
    if progress.stopping():
        return _fitting(["stopping: saves after this piece of work; again leaves at once", "stopping"], width)
    return _fitting([f"{pace.what}  {pace.words()}", f"{pace.what} {pace.count()}", pace.what], width)


def _success(progress: Progress, width: int) -> Text:
    share = percent(progress.latest.get("success/rate"))
    bars = sparkline(progress.success, max(0, min(40, width - len(share) - 2))) if width > len(share) + 2 else ""
    return Text.assemble(f"{share}  ", (bars, "green"))


def _scores(progress: Progress) -> list[str]:
    before, best = progress.before, progress.best
    first = f"before {percent(before.get('score'))}" if before is not None else ""
    if best is None:
        return [first or "-"]
    last = progress.evals[-1]
    now = f"step {last['step']}: {percent(last.get('score'))}"
    top = f"best {percent(best.get('score'))}"
    interval = span(last.get("low"), last.get("high"))
    told = [
        (first, now + interval, f"{top} at step {best['step']}"),
        (first, now, f"{top} at step {best['step']}"),
        (first, f"{top} at step {best['step']}"),
        (first, top),
        (top,),
    ]
    return ["   ".join(part for part in parts if part) for parts in told]


def _line(row: Row, width: int, label: int) -> Text:
    """A figure with its name before it, in a column of `label` where there is one."""
    name, shown = row
    words = (f"{name:<{label}}  " if label else f"{name} ", "yellow" if name == "warning" else "dim")
    line = Text.assemble(words, shown, no_wrap=True, overflow="ellipsis")
    line.truncate(width, overflow="ellipsis")
    return line


def _fitting(texts: Sequence[str], width: int) -> Text:
    """The first of the texts that fits; else the last one cut."""
    steadied = [Text(" ".join(steady(text).split("\n")), no_wrap=True, overflow="ellipsis") for text in texts]
    found = next((text for text in steadied if text.cell_len <= width), steadied[-1])
    found.truncate(max(1, width), overflow="ellipsis")
    return found
