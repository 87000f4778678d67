"""Drawing on a terminal with rich: its real size, characters it can show, and a status line."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.spinner import Spinner
from rich.text import Text
from sdpo_cli.terminal.progress import TaskTracker
from sdpo_cli.terminal.render import supports_unicode

from sdpo_mlx.core.text import display

REFRESH_PER_SECOND = 4
DEFAULT_SIZE = ConsoleDimensions(80, 24)  # for a terminal that reports no columns and lines
# The characters that the views use, for terminals that show only ASCII.
_ASCII = str.maketrans("▁▂▃▄▅▆▇█…━│─╭╮╰╯→", "__--==##.=|-++++>")


class TerminalConsole(Console):
    """A console on stderr; ignores COLUMNS and LINES, which a shell may have exported before a resize."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False)

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines that the terminal reports now."""
        try:
            width, height = os.get_terminal_size(self.file.fileno())
        except (OSError, ValueError):
            return super().size
        return ConsoleDimensions(width, height) if width and height else DEFAULT_SIZE

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size


class TerminalView:
    """A view that is redrawn: clears the screen after a resize, and uses ASCII if the locale is not UTF-8.

    A terminal wraps lines that have become too wide, each terminal in its own way, so that the first line of the last
    drawing cannot be located.
    """

    def __init__(self, view: RenderableType) -> None:
        self.view, self.unicode = view, supports_unicode()
        self._size: ConsoleDimensions | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        before, self._size = self._size, console.size
        if before is not None and before != self._size:
            yield Control(ControlType.HOME, ControlType.CLEAR)
        segments = console.render(self.view, options)
        if self.unicode:
            yield from segments
            return
        for text, style, control in segments:  # ASCII of the same width
            shown = "".join(c if c.isascii() else "?" * cell_len(c) for c in text.translate(_ASCII))
            yield Segment(shown, style, control)


@contextmanager
def draw(view: RenderableType, *, transient: bool = False) -> Iterator[None]:
    """Draw on stderr until the block ends; text printed there meanwhile appears above."""
    live = Live(
        TerminalView(view),
        console=TerminalConsole(),
        refresh_per_second=REFRESH_PER_SECOND,
        transient=transient,
        redirect_stdout=False,
    )
    before = shows_control_characters()
    show_control_characters(False)  # `^C` would move the drawing by a line
    try:
        with live:
            yield
    finally:
        show_control_characters(before)


def shows_control_characters() -> bool:
    """Return whether the terminal prints `^C` when Ctrl-C is pressed."""
    with suppress(termios.error, OSError, ValueError, AttributeError):  # no terminal, or no stdin
        return bool(termios.tcgetattr(sys.stdin.fileno())[3] & termios.ECHOCTL)
    return False


def show_control_characters(shown: bool) -> None:
    """Let the terminal print `^C` when Ctrl-C is pressed, or not."""
    with suppress(termios.error, OSError, ValueError, AttributeError):
        state = termios.tcgetattr(sys.stdin.fileno())
        state[3] = state[3] | termios.ECHOCTL if shown else state[3] & ~termios.ECHOCTL
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, state)


class StatusLine:
    """One line: the current task, its progress and its remaining time."""

    def __init__(self, tasks: TaskTracker) -> None:
        self.tasks, self.spinner = tasks, Spinner("line")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        task = self.tasks.current
        mark = self.spinner.render(console.get_time())
        text = f"{display(task.name)}  {task.summary()}" if task else ""
        line = Text.assemble(mark if isinstance(mark, Text) else Text(""), " ", " ".join(text.split("\n")))
        line.truncate(max(1, options.max_width - 1), overflow="ellipsis")
        line.no_wrap = True
        yield line
