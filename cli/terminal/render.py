"""Text output: results on stdout, messages on stderr; `console.py` and `live_view.py` draw.

Text of models, datasets and graders passes `untrusted` on its way out, and is never markup.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sdpo_mlx.core.text import Screen, display

if TYPE_CHECKING:
    from sdpo_cli.terminal.progress import TaskProgress

    from sdpo_mlx.core.progress import StartTask

ROUNDING = 1e-9
PROGRESS_SECONDS = 10.0  # between two plain lines of progress
PLAIN_TERMINALS = ("", "dumb", "unknown")  # values of TERM
SPARKS = "▁▂▃▄▅▆▇█"


def message(line: str) -> None:
    """Print one message on stderr."""
    sys.stderr.write(display(line) + "\n")
    sys.stderr.flush()


def warn(warnings: Sequence[str]) -> None:
    """Print warnings on stderr, one a line."""
    for warning in warnings:
        message(f"warning: {warning}")


def result(lines: Sequence[str]) -> None:
    """Print a text result on stdout."""
    for line in lines:
        sys.stdout.write(display(line, 100_000) + "\n")
    sys.stdout.flush()


def document(content: Mapping[str, Any]) -> None:
    """Print a JSON result: one document on stdout, ASCII, without NaN."""
    from sdpo_mlx.core.storage import plain

    sys.stdout.write(json.dumps(plain(content), indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def output(content: Mapping[str, Any], lines: Sequence[str], as_json: bool) -> None:
    """Print the document with `--json`, otherwise the lines."""
    if as_json:
        document(content)
    else:
        result(lines)


def untrusted(text: str, limit: int = 2_000, indent: str = "  ") -> list[str]:
    """Return the lines of an untrusted text, indented so that none looks like ours."""
    return [indent + line for line in display(text, limit).expandtabs(4).split("\n")]


def stream(pieces: Iterable[str], indent: str = "  ") -> None:
    """Print an untrusted text on stdout as it arrives, escaped and indented as by `untrusted`."""
    screen = Screen()

    def put(text: str) -> None:
        sys.stdout.write(text.replace("\t", "    ").replace("\n", "\n" + indent))
        sys.stdout.flush()

    sys.stdout.write(indent)
    for piece in pieces:
        put(screen.feed(piece))
    put(screen.rest())
    sys.stdout.write("\n")
    sys.stdout.flush()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned columns under a heading; the last column is not padded."""
    cells = [[" ".join(display(str(cell)).split()) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head) - 1)]
    return ["  ".join([*(f"{c:<{w}}" for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in cells]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned columns without a heading."""
    return table([""] * len(rows[0]), rows)[1:] if rows else []


def number(value: float | None, form: str = ".3g") -> str:
    """Three significant digits, `-` if there is no number."""
    return "-" if value is None or math.isnan(value) else f"{value:{form}}"


def rate(per_second: float | None) -> str:
    """A speed in whole units, `-` if there is no number."""
    return number(per_second, ",.0f")


def yaml_value(value: Any) -> str:
    """Return a setting as YAML on one line: a double-quoted scalar escapes line breaks and control characters."""
    import yaml

    texts = value if isinstance(value, list) else [value]
    style = '"' if any(isinstance(text, str) and not text.isprintable() for text in texts) else None
    text = yaml.safe_dump(value, default_flow_style=True, default_style=style, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def percent(share: float | None, low: float | None = None, high: float | None = None) -> str:
    """`34.1 %`, with an interval `34.1 % (30.2 to 38.0)`; `-` if there is no number."""
    return ("-" if share is None or math.isnan(share) else f"{100 * share:.1f} %") + span(low, high)


def span(low: float | None, high: float | None, form: str = ".1f") -> str:
    """An interval of shares, ` (30.2 to 38.0)`; empty if there is none."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f" ({100 * low:{form}} to {100 * high:{form}})"


def score(event: Mapping[str, Any], *, interval: bool = True) -> str:
    """Return a held-out score by its name: `success 34.1 % (30.2 to 38.0)`.

    With rewards between 0 and 1 it is `mean reward 0.341 (0.302 to 0.380), success 20.0 %`.
    """
    mean, success = event.get("score"), event.get("pass@1")
    low, high = (event.get("low"), event.get("high")) if interval else (None, None)
    if mean is None or not isinstance(success, float) or not abs(mean - success) > ROUNDING:
        return f"success {percent(mean, low, high)}"
    ends = "" if low is None or high is None or math.isnan(low) else f" ({low:.3f} to {high:.3f})"
    return f"mean reward {mean:.3f}{ends}, success {percent(success)}"


def plural(number: int, noun: str) -> str:
    """`1 problem`, `4 problems`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """`1:02:03`, or `0:42` below an hour."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float) -> str:
    """Bytes in the unit that reads best."""
    for unit in ("B", "KB", "MB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"


def sparkline(shares: Sequence[float], width: int = 40) -> str:
    """The last `width` shares of 1 as bars."""
    top = len(SPARKS) - 1
    return "".join(SPARKS[round(top * min(1.0, max(0.0, share)))] for share in shares[-width:])


def curve(shares: Sequence[float], width: int, height: int) -> list[str]:
    """Return a bar chart of shares of 1 in `height` lines, top first.

    Neighbours are averaged if they do not fit; bars are up to four characters wide if there are few.
    """
    count = min(width, len(shares))
    wide = min(4, width // count)
    parts = [shares[i * len(shares) // count : (i + 1) * len(shares) // count] for i in range(count)]
    levels = [round(len(SPARKS) * height * min(1.0, max(0.0, math.fsum(part) / len(part)))) for part in parts]
    rows = []
    for row in reversed(range(height)):
        filled = [min(len(SPARKS), max(0, level - row * len(SPARKS))) for level in levels]
        # An empty lowest cell gets the thinnest bar, so that a curve at 0 can be seen.
        rows.append("".join(wide * (SPARKS[max(0, each - 1)] if each or not row else " ") for each in filled))
    return rows


def is_live(plain: bool) -> bool:
    """Whether stderr is a terminal that can be drawn on."""
    allowed = not plain and "NO_COLOR" not in os.environ and os.environ.get("TERM", "") not in PLAIN_TERMINALS
    return allowed and sys.stderr.isatty()


def supports_unicode() -> bool:
    """Whether the locale is UTF-8.

    Python sets LC_CTYPE=C.UTF-8 itself if no locale is set (over ssh, for example): that value does not
    describe the terminal.
    """
    lang = os.environ.get("LANG", "")
    ctype = os.environ.get("LC_CTYPE", "")
    set_by_python = ctype == "C.UTF-8" and lang in ("", "C", "POSIX")
    locale = os.environ.get("LC_ALL") or ("" if set_by_python else ctype) or lang
    return "utf" in locale.lower() and (sys.stderr.encoding or "").lower().startswith("utf")


@contextmanager
def status(name: str, plain: bool) -> Iterator[StartTask]:
    """Show the progress of long tasks, beginning with `name`, and yield the function that starts the next one.

    A terminal shows one line, removed at the end; otherwise a line is printed now and then, the first at once unless
    `name` is blank.
    """
    from sdpo_cli.terminal.progress import TaskTracker

    if not is_live(plain):
        if name:
            message(name)
        yield TaskTracker(progress_lines()).start
        return
    from sdpo_cli.terminal.console import StatusLine, draw

    tasks = TaskTracker()
    tasks.start(name)
    with draw(StatusLine(tasks), transient=True):
        yield tasks.start


def progress_lines() -> Callable[[TaskProgress], None]:
    """Return a callback that prints the progress of a task, at most every PROGRESS_SECONDS."""
    printed = [time.monotonic()]

    def on_update(task: TaskProgress) -> None:
        if time.monotonic() - printed[0] >= PROGRESS_SECONDS:
            message(f"{task.name}: {task.summary()}")
            printed[0] = time.monotonic()

    return on_update
