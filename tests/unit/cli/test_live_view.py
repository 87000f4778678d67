"""The live view on terminals of any size: untrusted text is inert, no line is too long, the step is always shown."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from sdpo_cli.terminal import console as terminal_console
from sdpo_cli.terminal import render
from sdpo_cli.terminal.live_view import LiveView
from sdpo_cli.terminal.progress import Header, Progress, Sample, TaskProgress, TaskTracker
from sdpo_cli.terminal.sample_view import MOST_LINES, sample_lines, steady

from sdpo_mlx.types import Feedback, Problem, Rollout, RolloutGroup

HEADER = Header("tiny", "tiny", "sdpo", "ema", "cpu float32", "runs/x", 10)
TRICKS = (
    "[bold]x[/bold] [/nothing]",
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\u202eright to left",
    "漢字" * 300,
    "👩‍👩‍👧‍👦" * 60 + "🇩🇪👍🏽❤️",
    "\ta\tb\r\nc\x00\x9b31m",
    "word " * 500,
    "e\u0301" * 50 + "नमस्ते",
)
TEXTS = st.sampled_from(TRICKS) | st.text(max_size=200)


def watched(text: str = "x", step: int = 3) -> Progress:
    """A run in its third step with a text everywhere that a model, a grader or a path may put one."""
    ids = np.array([1, 2], dtype=np.int32)
    made = Rollout(ids, ids, np.zeros(2, dtype=np.float32), "stop", 0, text)
    problem = Problem("p", ({"role": "user", "content": text},))
    group = RolloutGroup(problem, (made,), (Feedback(0.0, False, f"{text}.", "wrong"),))
    progress = Progress(HEADER, clock=lambda: 0.0)
    progress.observe({"type": "eval", "step": 0, "score": 0.25, "low": 0.1, "high": 0.4}, ())
    progress.observe({"type": "step", "step": step, "success/rate": 0.5, "loss": 0.1}, [group])
    progress.observe({"type": "warning", "step": step, "message": text}, ())
    progress.tasks.start("sampling")(2, 8)
    return progress


def drawn(progress: Progress, width: int, height: int) -> list[str]:
    """What one refresh writes to a terminal of that size, without colours."""
    out = io.StringIO()
    console = Console(
        file=out, width=width, height=height, color_system=None, force_terminal=True, legacy_windows=False
    )
    console.print(LiveView(progress), end="")
    return out.getvalue().splitlines()


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.integers(12, 200), st.integers(3, 60))
@example(TRICKS[5], 40, 30)
@example("0\xa00", 12, 8)
@example(TRICKS[4], 41, 24)
def test_no_text_breaks_the_layout_on_any_terminal(text: str, width: int, height: int) -> None:
    lines = drawn(watched(text), width, height)
    assert len(lines) < height
    assert all(cell_len(line) <= width for line in lines)
    assert "\x1b" not in "".join(lines)
    assert all(character.isprintable() for line in lines for character in line)
    assert any("step" in line and "3/10" in line for line in lines)
    if height > 3:
        assert "sdpo" in lines[0]


@settings(deadline=None, max_examples=40)
@given(TEXTS, st.integers(24, 120))
@example(TRICKS[5], 40)
@example("0\u2028", 24)
def test_frame_is_unbroken_on_an_emulated_terminal(text: str, width: int) -> None:
    pyte = pytest.importorskip("pyte", reason="pyte, a terminal to look at, is not installed")
    screen = pyte.Screen(width, 30)
    pyte.Stream(screen).feed("\r\n".join(drawn(watched(text), width, 30)))
    shown = [line.rstrip() for line in screen.display if line.strip()]
    assert shown[0].startswith("╭")
    assert shown[-1].startswith("╰")
    assert all(line[0] == "│" for line in shown[1:-1])


@pytest.mark.parametrize(
    ("width", "height", "there", "gone"),
    [
        (100, 40, ("sampling", "loss", "context", "memory", "problem", "warning"), ()),
        (80, 14, ("sampling", "loss", "context", "memory", "warning"), ("problem",)),
        (40, 12, ("sampling", "loss", "warning"), ("problem",)),
        (40, 8, ("step", "sampling", "success", "held-out", "loss"), ("memory", "warning")),
        (20, 4, ("step", "sampling"), ("success",)),
    ],
)
def test_least_important_rows_are_left_out_first(
    width: int, height: int, there: tuple[str, ...], gone: tuple[str, ...]
) -> None:
    shown = "\n".join(drawn(watched(), width, height))
    assert [word for word in there if word not in shown] == []
    assert [word for word in gone if word in shown] == []


def test_free_rows_show_curves_and_the_key_to_stop() -> None:
    progress = watched()
    for n in (4, 5):
        progress.observe({"type": "step", "step": n, "success/rate": 0.1 * n, "length/truncated": 0.2})
    shown = "\n".join(drawn(progress, 100, 30))
    assert "success 50 → 50 %" in shown
    assert "truncated 20 → 20 %" in shown
    assert "Ctrl-C saves and stops" in shown


def test_view_shows_stopping_until_the_end() -> None:
    progress = watched()
    progress.ended = "stopped"
    assert "stopped" in "\n".join(drawn(progress, 100, 24))
    assert "Ctrl-C" not in "\n".join(drawn(progress, 100, 24))
    progress.ended = ""
    progress.stopping = lambda: True
    assert "stopping" in "\n".join(drawn(progress, 80, 24))
    progress.tasks.start("")
    assert "stopping" not in "\n".join(drawn(progress, 80, 24))


@given(st.text(max_size=100))
def test_characters_of_uncertain_width_are_removed(text: str) -> None:
    assert not set(steady(text)) & set("\u200d\ufe0f\u202e\x1b\t\r")


@settings(deadline=None)
@given(TEXTS, st.integers(3, 100), st.integers(0, 20))
def test_a_sample_keeps_to_its_lines(text: str, width: int, room: int) -> None:
    lines = sample_lines(Console(width=width), Sample(text, text, "wrong", text), width, min(MOST_LINES, room))
    assert len(lines) <= room
    assert not lines or len(lines) >= 3


class Terminal(io.StringIO):
    """A terminal of 30 columns whose size can be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.columns, self.encoding_ = 30, "utf-8"

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.encoding_

    def isatty(self) -> bool:
        return True


@contextmanager
def at_terminal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Iterator[Terminal]:
    terminal = Terminal()
    for name in ("NO_COLOR", "LC_ALL", "LC_CTYPE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "LANG": "en_US.UTF-8", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(
        terminal_console.TerminalConsole,
        "size",
        property(lambda self: terminal_console.ConsoleDimensions(terminal.columns, 10)),
    )
    yield terminal


def test_a_changed_size_clears_the_screen_and_an_unchanged_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with at_terminal(monkeypatch) as terminal:
        drawing, console = terminal_console.TerminalView(LiveView(watched())), terminal_console.TerminalConsole()
        console.print(drawing)
        console.print(drawing)
        assert "\x1b[2J" not in terminal.getvalue()
        terminal.columns = 20
        console.print(drawing)
        assert terminal.getvalue().count("\x1b[2J") == 1


@pytest.mark.parametrize("shown", [True, False])
def test_drawing_hides_control_characters_and_restores_what_was_set(
    monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    ours, theirs = os.openpty()
    with at_terminal(monkeypatch), os.fdopen(theirs) as terminal, os.fdopen(ours):
        monkeypatch.setattr("sys.stdin", terminal)
        terminal_console.show_control_characters(shown)
        with terminal_console.draw(LiveView(watched())):
            assert not terminal_console.shows_control_characters()
        assert terminal_console.shows_control_characters() is shown


@pytest.mark.parametrize("term", ["xterm", "xterm-256color", "screen", "linux"])
def test_cursor_is_restored_and_the_last_view_stays(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    with (
        at_terminal(monkeypatch, TERM=term) as terminal,
        pytest.raises(KeyboardInterrupt),
        terminal_console.draw(LiveView(watched())),
    ):
        raise KeyboardInterrupt
    shown = terminal.getvalue()
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "3/10" in shown[shown.rindex("step") :]


@pytest.mark.parametrize(
    ("environment", "unicode"),
    [
        ({"LANG": "en_US.UTF-8"}, True),
        ({"LANG": "", "LC_CTYPE": "UTF-8"}, True),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),  # what Python itself makes of LANG=C
        ({"LANG": "en_US.UTF-8", "LC_ALL": "C"}, False),
        ({"LANG": ""}, False),
    ],
)
def test_locale_decides_between_unicode_and_ascii(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], unicode: bool
) -> None:
    with at_terminal(monkeypatch, **environment) as terminal:
        terminal_console.TerminalConsole().print(terminal_console.TerminalView(LiveView(watched("漢字…"))))
    assert ("╭" in terminal.getvalue()) == unicode
    assert terminal.getvalue().isascii() != unicode


@pytest.mark.parametrize("term", ["dumb", "unknown", ""])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    with at_terminal(monkeypatch, TERM=term) as terminal:
        assert not render.is_live(plain=False)
        with render.status("loading tiny", plain=False) as doing:
            doing("loading")(1, 2)
    assert terminal.getvalue() == "loading tiny\n"


def test_status_line_shows_the_task_and_disappears(monkeypatch: pytest.MonkeyPatch) -> None:
    work = TaskTracker()
    work.start("copying [red]漢字\x1b[31m " * 5)(3, 9)
    with at_terminal(monkeypatch) as terminal, terminal_console.draw(terminal_console.StatusLine(work), transient=True):
        pass
    out = io.StringIO()
    Console(file=out, width=30, color_system=None).print(terminal_console.StatusLine(work))
    assert "copying [red]漢字" in out.getvalue()
    assert cell_len(out.getvalue().rstrip("\n")) < 30
    assert "\x1b[2K" in terminal.getvalue()


def test_time_left_follows_the_rate_without_cached_items() -> None:
    now = [0.0]
    task = TaskProgress("answers", clock=lambda: now[0])
    task.update(40, 100)
    assert (task.seconds_left(), task.summary()) == (None, "40/100  0:00")
    now[0] = 30.0
    task.update(45, 100)
    assert task.seconds_left() is None  # too little is done to say
    task.update(70, 100)
    assert (task.seconds_left(), task.summary()) == (30.0, "70/100  0:30 left")
    task.update(100, 100)
    assert task.summary() == "100/100  0:30"


def test_plain_progress_lines_are_rare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(render.time, "monotonic", lambda: now[0])
    tell = TaskTracker(render.progress_lines(), clock=lambda: now[0]).start("tensors")
    for done in range(0, 61):
        now[0] = float(done)
        tell(done, 60)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tensors: 10/60  0:50 left"
    assert len(lines) == 6
