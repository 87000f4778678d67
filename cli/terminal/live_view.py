"""The view of a run: plain lines anywhere, a live view on a terminal, drawn on stderr by rich.

Untrusted text becomes `Text`, never markup. No line wraps and the view is never higher than the terminal: what does
not fit is left out, the sample first, then the least important figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.text import Text
from sdpo_cli.terminal import render
from sdpo_cli.terminal.console import draw
from sdpo_cli.terminal.progress import Progress
from sdpo_cli.terminal.render import duration, number, percent, rate, size, span, sparkline
from sdpo_cli.terminal.sample_view import MOST_LINES, sample_lines, steady

if TYPE_CHECKING:
    from sdpo_mlx.training.session import OnEvent
    from sdpo_mlx.types import RolloutGroup

BORDER_LINES = 2
MIN_FRAMED_HEIGHT, MIN_FRAMED_WIDTH = 6, 16  # a smaller terminal gets no frame
MIN_LABELLED_WIDTH = 36  # from here on the labels have a column of their own
BAR_WIDTH = 30
# The rows by importance: what stays if there is no room for all.
PRIORITY = ("step", "now", "success", "held-out", "loss", "warning", "context", "tokens/s", "memory")

Row = tuple[str, Text]


@contextmanager
def run_view(progress: Progress, plain: bool) -> Iterator[OnEvent]:
    """Yield the observer of a run, which shows each event; the last drawing stays, without the current task."""
    if render.is_live(plain):
        with draw(LiveView(progress)):
            try:
                yield progress.observe
            finally:
                progress.tasks.start("")
        return
    render.message(progress.header.line())
    progress.tasks.on_update = render.progress_lines()

    def observe(event: Mapping[str, Any], groups: Sequence[RolloutGroup]) -> None:
        progress.observe(event, groups)
        for line in event_lines(event, progress):
            render.message(line)

    yield observe


def event_lines(event: Mapping[str, Any], progress: Progress) -> list[str]:
    """An event as plain text; checkpoints and other bookkeeping give none."""
    kind = event["type"]
    if kind == "step":
        return [_step_line(progress)]
    if kind == "eval":
        return [_eval_line(event, progress)]
    if kind == "warning":
        return [f"warning: {event.get('message', '')}"]
    return [f"resumed after step {event['step']}"] if kind == "resumed" else []


def _step_line(progress: Progress) -> str:
    latest, left = progress.latest, progress.seconds_left()
    parts = [
        f"step {progress.step}/{progress.header.steps}",
        f"success {percent(latest.get('success/rate'))}",
        f"loss {number(latest.get('loss'))}",
        f"divergence {number(latest.get('divergence/mean'))}",
        f"context {context_summary(progress)}",
        f"{rate(progress.speed('generated', 'generate'))} tok/s",
        f"left {duration(left)}" if left is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def context_summary(progress: Progress) -> str:
    """The share of rollouts with a teacher context, and why the others have none."""
    skips = ", ".join(f"{reason} {count}" for reason, count in progress.skips().items())
    return percent(progress.with_context()) + (f" ({skips})" if skips else "")


def _eval_line(event: Mapping[str, Any], progress: Progress) -> str:
    score = f"{percent(event.get('score'))}{span(event.get('low'), event.get('high'))}"
    if event.get("final"):
        which = "before training" if event.get("adapter") == "none" else f"best adapter (step {event['adapter_step']})"
        return f"held-out, {which}: {score}"
    return f"held-out at step {event['step']}: {score}{', best so far' if progress.best is event else ''}"


class LiveView:
    """The current state of a run, as much of it as fits."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.size.height - 1  # the last line is the cursor's
        header = self.progress.header
        if height < MIN_FRAMED_HEIGHT or width < MIN_FRAMED_WIDTH:
            yield from self._unframed(width, height)
            return
        yield Panel(
            Group(*self._lines(console, width - 4, height - BORDER_LINES)),
            title=_first_fit(_titles(self.progress), width - 8),
            subtitle=_first_fit([header.out, f"…/{PurePath(header.out).name}"], width - 8),
            title_align="left",
            width=width,
        )

    def _unframed(self, width: int, height: int) -> Iterator[Text]:
        rows = [_first_fit(_titles(self.progress), width)]
        rows += [_line(row, width, 0) for row in self._rows_that_fit(width, max(1, height - 1))]
        yield from rows[: max(1, height)] if height > 1 else rows[1:2]

    def _lines(self, console: Console, width: int, height: int) -> list[Text]:
        label = max(map(len, PRIORITY)) if width >= MIN_LABELLED_WIDTH else 0
        rows = self._rows_that_fit(width - (label + 2 if label else 0), height)
        figures = [_line(row, width, label) for row in rows if row[0] != "warning"]
        warnings = [_line(row, width, label) for row in rows if row[0] == "warning"]
        free = height - len(figures) - len(warnings)
        sample = self.progress.sample
        shown = sample_lines(console, sample, width, min(MOST_LINES, free - 1)) if sample is not None else []
        return [*figures, *([Text(""), *shown] if shown else []), *warnings]

    def _rows_that_fit(self, width: int, height: int) -> list[Row]:
        rows = [row for row in _rows(self.progress, width) if row[1].plain]
        by_priority = sorted(range(len(rows)), key=lambda at: (PRIORITY.index(rows[at][0]), -at))
        return [rows[at] for at in sorted(by_priority[: max(1, height)])]


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


def _rows(progress: Progress, width: int) -> list[Row]:
    latest = progress.latest
    generation, learning = progress.speed("generated", "generate"), progress.speed("learned", "teacher", "learn")
    loss, divergence = number(latest.get("loss")), number(latest.get("divergence/mean"))
    peak = f"peak {size(latest['memory/peak'])}" if latest.get("memory/peak") else "-"

    def fit(*texts: str) -> Text:
        return _first_fit(texts, width)

    return [
        ("step", _steps(progress, width)),
        ("now", _current_task(progress, width)),
        ("success", _success(progress, width)),
        ("held-out", fit(*_scores(progress))),
        ("loss", fit(f"{loss}   divergence {divergence}", loss)),
        ("context", fit(context_summary(progress), percent(progress.with_context()))),
        ("tokens/s", fit(f"generation {rate(generation)}   learning {rate(learning)}", f"{rate(generation)}")),
        ("memory", fit(peak)),
        *(("warning", fit(warning)) for warning in progress.warnings),
    ]


def _steps(progress: Progress, width: int) -> Text:
    """`3/15 ━━━━━━╺━━━━ 0:42 left`, without the bar if it would be too short to read."""
    done, steps, left = progress.step, max(1, progress.header.steps), progress.seconds_left()
    count, rest = f"{done}/{progress.header.steps}", f"{duration(left)} left" if left else ""
    bar = min(BAR_WIDTH, width - len(count) - len(rest) - 2)
    if bar < 5:
        return _first_fit([f"{count}  {rest}", f"{count} {rest.removesuffix(' left')}", count], width)
    full = min(bar, bar * done // steps)
    return Text.assemble(f"{count} ", ("━" * full, "green"), ("─" * (bar - full), "dim"), f" {rest}")


def _current_task(progress: Progress, width: int) -> Text:
    task = progress.tasks.current
    if task is None:
        return Text("")
    if progress.stopping():
        return _first_fit(["stopping: saves after the current task; Ctrl-C again quits at once", "stopping"], width)
    return _first_fit([f"{task.name}  {task.summary()}", f"{task.name} {task.count()}", task.name], width)


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
    variants = [
        (first, now + interval, f"{top} at step {best['step']}"),
        (first, now, f"{top} at step {best['step']}"),
        (first, f"{top} at step {best['step']}"),
        (first, top),
        (top,),
    ]
    return ["   ".join(part for part in parts if part) for parts in variants]


def _line(row: Row, width: int, label: int) -> Text:
    """A figure with its label, in a column of `label` characters if that is not 0."""
    name, shown = row
    prefix = (f"{name:<{label}}  " if label else f"{name} ", "yellow" if name == "warning" else "dim")
    line = Text.assemble(prefix, shown, no_wrap=True, overflow="ellipsis")
    line.truncate(width, overflow="ellipsis")
    return line


def _first_fit(texts: Sequence[str], width: int) -> Text:
    """Return the first text that fits, otherwise the last one truncated."""
    candidates = [Text(" ".join(steady(text).split("\n")), no_wrap=True, overflow="ellipsis") for text in texts]
    found = next((text for text in candidates if text.cell_len <= width), candidates[-1])
    found.truncate(max(1, width), overflow="ellipsis")
    return found
