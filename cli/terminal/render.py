"""Everything that a person reads: results on stdout, messages on stderr; `waiting.py` and `live_view.py` draw.

Text of models, datasets and graders passes `untrusted` on its way out, and never is markup.
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
    from sdpo_cli.terminal.pace import Pace

    from sdpo_mlx.core.progress import StartTask

QUIET_SECONDS = 10.0  # between two lines of progress
NOT_DRAWN_ON = ("", "dumb", "unknown")  # values of TERM
SPARKS = "▁▂▃▄▅▆▇█"


def say(line: str) -> None:
    """One message on stderr."""
    sys.stderr.write(display(line) + "\n")
    sys.stderr.flush()


def warn(warnings: Sequence[str]) -> None:
    """What a person should know first, on stderr."""
    for warning in warnings:
        say(f"warning: {warning}")


def result(lines: Sequence[str]) -> None:
    """A result for a person, on stdout."""
    for line in lines:
        sys.stdout.write(display(line, 100_000) + "\n")
    sys.stdout.flush()


def document(content: Mapping[str, Any]) -> None:
    """A result for a program: one JSON document on stdout, ASCII, without NaN."""
    from sdpo_mlx.core.storage import plain

    sys.stdout.write(json.dumps(plain(content), indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def untrusted(text: str, limit: int = 2_000, indent: str = "  ") -> list[str]:
    """Lines of a foreign text, indented so that none can pass for one of ours."""
    return [indent + line for line in display(text, limit).expandtabs(4).split("\n")]


def stream(pieces: Iterable[str], indent: str = "  ") -> None:
    """A foreign text on stdout while it comes: made inert and indented as `untrusted` does."""
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
    """Aligned columns; the last one runs on."""
    cells = [[" ".join(display(str(cell)).split()) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head) - 1)]
    return ["  ".join([*(f"{c:<{w}}" for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in cells]


def percent(share: float | None) -> str:
    """`34.1 %`, `-` where there is no number."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def span(low: float | None, high: float | None) -> str:
    """An interval of shares, ` (30.2 to 38.0)`; empty where there is none."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f" ({100 * low:.1f} to {100 * high:.1f})"


def number(value: float | None) -> str:
    """Three digits that matter, `-` where there is no number."""
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"


def rate(each_second: float | None) -> str:
    """A speed in whole units, `-` where there is no number."""
    return "-" if each_second is None or math.isnan(each_second) else f"{each_second:,.0f}"


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


def is_live(plain: bool) -> bool:
    """Whether stderr is a terminal that may be drawn on."""
    wanted = not plain and "NO_COLOR" not in os.environ and os.environ.get("TERM", "") not in NOT_DRAWN_ON
    return wanted and sys.stderr.isatty()


def speaks_unicode() -> bool:
    """Whether the locale says that the terminal shows more than ASCII.

    Where nobody says anything (`C`, over ssh for one) Python itself sets LC_CTYPE; that tells nothing of a terminal.
    """
    general = os.environ.get("LANG", "")
    own = os.environ.get("LC_CTYPE", "")
    made_up = own == "C.UTF-8" and general in ("", "C", "POSIX")
    named = os.environ.get("LC_ALL") or ("" if made_up else own) or general
    return "utf" in named.lower() and (sys.stderr.encoding or "").lower().startswith("utf")


@contextmanager
def status(what: str, plain: bool) -> Iterator[StartTask]:
    """Show that something takes its time, how far it has come and how long the rest takes.

    Gives what begins the next piece of work by its name, which in turn gives what tells how far it has come. On a
    terminal one line that goes at the end; elsewhere a line now and then, the first at once unless `what` is blank.
    """
    from sdpo_cli.terminal.pace import RunningTask

    if not is_live(plain):
        if what:
            say(what)
        yield RunningTask(now_and_then()).doing
        return
    from sdpo_cli.terminal.waiting import Waiting, drawing

    work = RunningTask()
    work.doing(what)
    with drawing(Waiting(work), transient=True):
        yield work.doing


def now_and_then() -> Callable[[Pace], None]:
    """Says how far a piece of work has come, unless something was said just before."""
    said = [time.monotonic()]

    def heard(pace: Pace) -> None:
        if time.monotonic() - said[0] >= QUIET_SECONDS:
            say(f"{pace.what}: {pace.words()}")
            said[0] = time.monotonic()

    return heard
