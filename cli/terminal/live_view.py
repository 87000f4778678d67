"""The view of a run: plain lines anywhere, a live view on a terminal, drawn on stderr by rich.

Untrusted text becomes `Text`, never markup. No line wraps and the view is never higher than the terminal: what does
not fit is left out, the sample first, then the least important figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.text import Text
from sdpo_cli.terminal import render
from sdpo_cli.terminal.console import draw
from sdpo_cli.terminal.progress import Progress
from sdpo_cli.terminal.render import curve, duration, number, percent, rate, size, sparkline
from sdpo_cli.terminal.sample_view import MOST_LINES, sample_lines, steady

if TYPE_CHECKING:
    from sdpo_mlx.training.session import OnEvent
    from sdpo_mlx.types import RolloutGroup

BORDER_LINES = 2
KINDS = {"demonstrations": "demonstration", "feedback": "feedback"}  # of contexts, as in `share/...` of a step event
MIN_FRAMED_HEIGHT, MIN_FRAMED_WIDTH = 6, 16  # a smaller terminal gets no frame
MIN_LABELLED_WIDTH = 36  # from here on the labels have a column of their own
BAR_WIDTH = 30
# The rows by importance: what stays if there is no room for all.
PRIORITY = ("step", "now", "success", "held-out", "loss", "warning", "truncated", "context", "tokens/s", "memory")
CURVE_HEIGHT, CURVE_WIDTH, CURVE_GAP = 3, 32, 3
MIN_SAMPLE_LINES = 4  # curves need as many lines beside their own, for the sample

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
                progress.ended = progress.ended or "stopped"
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
        latest, left = progress.latest, progress.seconds_left()
        parts = [
            f"step {progress.step}/{progress.header.steps}",
            f"success {percent(latest.get('success/rate'))}",
            f"truncated {percent(latest.get('length/truncated'))}",
            losses(latest),
            f"context {context_summary(progress)}",
            f"{rate(progress.speed('generated', 'generate'))} tok/s",
            *([f"left {duration(left)}"] if left is not None else []),
        ]
        return ["  ".join(parts)]
    if kind == "eval":
        score = render.score(event)
        if not event.get("final"):
            line = f"held-out at step {event['step']}: {score}{', best so far' if progress.best is event else ''}"
            return [line] if event["step"] else []  # step 0 is the score before training, which has its line
        which = "before training" if event.get("adapter") == "none" else f"best adapter (step {event['adapter_step']})"
        return [f"held-out, {which}: {score}"]
    if kind == "warning":
        return [f"warning: {event.get('message', '')}"]
    if kind == "decline":
        return [str(event.get("message", ""))]
    return [f"resumed after step {event['step']}"] if kind == "resumed" else []


def losses(latest: Mapping[str, Any]) -> str:
    """The loss of a step, and the divergence if it is another number: objective `sdpo` minimises the divergence."""
    loss, divergence = (number(latest.get(name)) for name in ("loss", "divergence/mean"))
    return f"loss {loss}" if divergence in (loss, "-") else f"loss {loss}  divergence {divergence}"


def context_summary(progress: Progress) -> str:
    """The share of rollouts with a teacher context, why the others have none, and what `auto` makes of them."""
    skips = ", ".join(f"{reason} {count}" for reason, count in progress.skips().items())
    shares = {name: progress.latest.get(f"share/{kind}") for name, kind in KINDS.items()}
    learned = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items() if share is not None)
    parts = (f" ({skips})" if skips else "", f", SDPO's share: {learned}" if learned else "")
    return "".join((percent(progress.with_context()), *parts))


@dataclass
class LiveView:
    """The current state of a run, as much of it as fits."""

    progress: Progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.size.height - 1  # the last line is the cursor's
        header = self.progress.header
        short = PurePath(header.model).name or header.model
        titles = [
            f"sdpo  {header.model} on {header.task}  {header.objective}, teacher {header.teacher}  {header.device}",
            f"sdpo  {header.model} on {header.task}  {header.objective}, teacher {header.teacher}",
            f"sdpo  {header.model} on {header.task}",
            f"sdpo  {short} on {header.task}",
            f"sdpo  {short}",
        ]
        if height < MIN_FRAMED_HEIGHT or width < MIN_FRAMED_WIDTH:
            figures = [_line(row, width, 0) for row in self._rows_that_fit(width, max(1, height - 1))]
            yield from [_first_fit(titles, width), *figures][:height] if height > 1 else figures[:1]
            return
        yield Panel(
            Group(*self._lines(console, width - 4, height - BORDER_LINES)),
            title=_first_fit(titles, width - 8),
            subtitle=_first_fit(self._subtitles(), width - 8),
            border_style="dim",
            title_align="left",
            width=width,
        )

    def _subtitles(self) -> list[str]:
        out, keys = self.progress.header.out, "" if self.progress.ended else self.progress.keys
        short = f"…/{PurePath(out).name}"
        return [*(f"{each}  {keys}" for each in (out, short) if keys), *([keys] if keys else [out, short])]

    def _lines(self, console: Console, width: int, height: int) -> list[Text]:
        label = max(map(len, PRIORITY)) if width >= MIN_LABELLED_WIDTH else 0
        rows = self._rows_that_fit(width - (label + 2 if label else 0), height)
        figures = [_line(row, width, label) for row in rows if row[0] != "warning"]
        warnings = [_line(row, width, label) for row in rows if row[0] == "warning"]
        free = height - len(figures) - len(warnings)
        curves = _curves(self.progress, width) if free >= CURVE_HEIGHT + MIN_SAMPLE_LINES + 3 else []
        free -= len(curves)
        sample = self.progress.sample
        shown = sample_lines(console, sample, width, min(MOST_LINES, free - 1)) if sample is not None else []
        return [*figures, *curves, *([Text(""), *shown] if shown else []), *warnings]

    def _rows_that_fit(self, width: int, height: int) -> list[Row]:
        rows = [row for row in _rows(self.progress, width) if row[1].plain]
        by_priority = sorted(range(len(rows)), key=lambda at: (PRIORITY.index(rows[at][0]), -at))
        return [rows[at] for at in sorted(by_priority[: max(1, height)])]


def _rows(progress: Progress, width: int) -> list[Row]:
    latest, task = progress.latest, progress.tasks.current
    current = [f"{task.name}  {task.summary()}", f"{task.name} {task.count()}", task.name] if task else [""]
    if task and progress.stopping():
        current = ["stopping: saves after the current task; Ctrl-C again quits at once", "stopping"]
    generation, learning = progress.speed("generated", "generate"), progress.speed("learned", "teacher", "learn")
    loss, more = losses(latest).removeprefix("loss "), f"   length {number(latest.get('length/mean'), '.0f')} tokens"
    truncated = percent(latest.get("length/truncated"))
    peak = f"peak {size(latest['memory/peak'])}" if latest.get("memory/peak") else "-"

    success = percent(latest.get("success/rate"))
    bars, shares = width - len(success) - 2, progress.curve("success/rate")

    def fit(*texts: str) -> Text:
        return _first_fit(texts, width)

    return [
        ("step", _steps(progress, width)),
        ("now", fit(*current)),
        (
            "success",
            Text.assemble(f"{success}  ", (sparkline(shares, min(40, bars)) if bars > 0 else "", "green")),
        ),
        ("held-out", fit(*_scores(progress))),
        ("truncated", fit(truncated + more, truncated)),
        ("loss", fit(loss)),
        ("context", fit(context_summary(progress), percent(progress.with_context()))),
        ("tokens/s", fit(f"generation {rate(generation)}   learning {rate(learning)}", f"{rate(generation)}")),
        ("memory", fit(peak)),
        *(("warning", fit(warning)) for warning in progress.warnings),
    ]


def _curves(progress: Progress, width: int) -> list[Text]:
    """Return up to three small charts side by side, an empty line above them; each needs two points."""
    held_out = [event["score"] for event in progress.evals if event.get("score") is not None]
    charts = [
        (name, values, colour)
        for name, values, colour in (
            ("success", progress.curve("success/rate"), "green"),
            ("held-out", held_out, "cyan"),
            ("truncated", progress.curve("length/truncated"), "yellow"),
        )
        if len(values) > 1
    ]
    each = min(CURVE_WIDTH, (width + CURVE_GAP) // max(1, len(charts)) - CURVE_GAP)
    if not charts or each < 2 * max(map(len, PRIORITY)):
        return []
    lines = [Text("", no_wrap=True) for _ in range(CURVE_HEIGHT + 2)]
    for name, values, colour in charts:
        title = f"{name} {100 * values[0]:.0f} → {100 * values[-1]:.0f} %"
        rows = [(title if len(title) <= each else name, "dim"), *((row, colour) for row in curve(values, each, 3))]
        for line, (text, style) in zip(lines[1:], rows, strict=True):
            line.append(f"{text:<{each + CURVE_GAP}}", style)
    for line in lines:
        line.truncate(width, overflow="crop")
    return lines


def _steps(progress: Progress, width: int) -> Text:
    """`3/15 ━━━━━━╺━━━━ 0:42 left, 0:10 so far`, without the bar if it would be too short to read."""
    done, steps, left = progress.step, max(1, progress.header.steps), progress.seconds_left()
    rest = progress.ended or (f"{duration(left)} left" if left is not None else "")
    so_far = f"{', ' if rest else ''}{duration(progress.elapsed())} so far"
    count = f"{done}/{progress.header.steps}"
    rest += so_far if width >= BAR_WIDTH + len(count) + len(rest + so_far) + 2 else ""
    bar = min(BAR_WIDTH, width - len(count) - len(rest) - 2)
    if bar < 5:
        return _first_fit([f"{count}  {rest}", f"{count} {rest.removesuffix(' left')}", count], width)
    full = min(bar, bar * done // steps)
    return Text.assemble(f"{count} ", ("━" * full, "green"), ("─" * (bar - full), "dim"), f" {rest}")


def _scores(progress: Progress) -> list[str]:
    before, best = progress.before, progress.best
    first = f"before {_score(before)}" if before is not None else ""
    if best is None:
        return [first or "-"]
    last = progress.evals[-1]
    top = f"best {_score(best)}"
    variants = [
        (first, f"step {last['step']}: {render.score(last).removeprefix('success ')}", f"{top} at step {best['step']}"),
        (first, f"step {last['step']}: {_score(last)}", f"{top} at step {best['step']}"),
        (first, f"{top} at step {best['step']}"),
        (first, top),
        (top,),
    ]
    return ["   ".join(part for part in parts if part) for parts in variants]


def _score(event: Mapping[str, Any]) -> str:
    return render.score(event, interval=False).removeprefix("success ")


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
