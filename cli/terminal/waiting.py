"""The terminal as rich draws on it: its true size, letters that it can show, and one line for a wait."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.spinner import Spinner
from rich.text import Text
from sdpo_cli.terminal.pace import RunningTask
from sdpo_cli.terminal.render import speaks_unicode

from sdpo_mlx.core.text import display

FRAMES_A_SECOND = 4
USUAL = ConsoleDimensions(80, 24)  # where a terminal says that it has no columns and no lines
# What we draw with, for terminals that show no more than ASCII.
_LETTERS = str.maketrans("▁▂▃▄▅▆▇█…━│─╭╮╰╯", "__--==##.=|-++++")


class Screen(Console):
    """stderr as a terminal; a stale COLUMNS or LINES, which a shell may have exported, does not count."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False)

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines as the terminal says now."""
        try:
            width, height = os.get_terminal_size(self.file.fileno())
        except (OSError, ValueError):
            return super().size
        return ConsoleDimensions(width, height) if width and height else USUAL

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size


class Drawn:
    """Anything drawn again and again: clears the screen where its size has changed, and speaks its letters.

    A terminal breaks the lines anew that are wider than it has become, each in its own way, so that nobody knows how
    far up the last picture begins.
    """

    def __init__(self, picture: RenderableType) -> None:
        self.picture, self.unicode = picture, speaks_unicode()
        self._size: ConsoleDimensions | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        before, self._size = self._size, console.size
        if before is not None and before != self._size:
            yield Control(ControlType.HOME, ControlType.CLEAR)
        segments = console.render(self.picture, options)
        if self.unicode:
            yield from segments
            return
        yield from (Segment(_plain(text), style, control) for text, style, control in segments)


def _plain(text: str) -> str:
    """ASCII as wide as the text."""
    text = text.translate(_LETTERS)
    return text if text.isascii() else "".join(c if c.isascii() else "?" * cell_len(c) for c in text)


@contextmanager
def drawing(picture: RenderableType, *, transient: bool = False) -> Iterator[None]:
    """Draw on stderr until the block ends; what is printed there meanwhile stands above."""
    live = Live(
        Drawn(picture),
        console=Screen(),
        refresh_per_second=FRAMES_A_SECOND,
        transient=transient,
        redirect_stdout=False,
    )
    with live:
        yield


class Waiting:
    """One line: what is being done, how far it has come, how long the rest takes."""

    def __init__(self, work: RunningTask) -> None:
        self.work, self.spinner = work, Spinner("line")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        pace = self.work.pace
        mark = self.spinner.render(console.get_time())
        told = f"{display(pace.what)}  {pace.words()}" if pace else ""
        line = Text.assemble(mark if isinstance(mark, Text) else Text(""), " ", " ".join(told.split("\n")))
        line.truncate(max(1, options.max_width - 1), overflow="ellipsis")
        line.no_wrap = True
        yield line
