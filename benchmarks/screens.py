"""Record the screens of `docs/terminal.md`: `python benchmarks/screens.py` runs each command in a pseudo-terminal.

Replaces the text block after each `<!-- screen NAME -->`. Times, paths and figures of the machine are replaced by
placeholders, so that a new recording differs only if a screen does. Needs pyte (`pip install pyte`).
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "terminal.md"
TIMEOUT = 300.0  # seconds without output
BLOCK = re.compile(r"<!-- screen ([\w-]+) -->\n```text\n((?:(?!```)[\s\S])*)```")
PLACEHOLDERS: Sequence[tuple[str, str]] = (
    (r"\b(?:\d+:)?\d+:\d\d\b", "-:--"),
    (r"(?<![\w./:])(?:/[\w.@+-]+)+/([\w.@+-]+)", r"/.../\1"),
    (r"\b[\d.,]+ (GFLOP/s|cores|GB free)", r"N \1"),
    (r"\bof [\d.,]+ GB", "of N GB"),
    (r"Linux-\S+", "Linux"),
    (r"(generation|learning) [\d,]+", r"\1 N"),
)


@dataclass(frozen=True)
class Screen:
    """One command on a terminal of this size; `middle` matches the screen to record while the command runs."""

    name: str
    command: str
    columns: int = 80
    lines: int = 24
    middle: str = ""


TRAIN = "sdpo train --model tiny --task tiny --steps 6 --out runs/first"
SCREENS = (
    Screen("train", TRAIN, lines=46, middle=r"step +[34]/6[\s\S]*now +sampling +[1-9]"),
    Screen("train-narrow", TRAIN.replace("first", "second"), 40, 12, r"step +[23]/6[\s\S]*now +(sampling|learning)"),
    Screen("watch", "sdpo watch runs/first --once", lines=30),
    Screen("runs", "sdpo runs", 100, 4),
    Screen("eval", "sdpo eval runs/first --problems 8 --group-size 4 --plain", lines=26),
    Screen("compare", "sdpo compare runs/first --problems 16 --group-size 2 --plain", lines=32),
    Screen("solve", "sdpo solve --model tiny --task tiny:mid --attempts 24 --group-size 4 --plain", 100, 56),
    Screen("plan", "sdpo plan --model tiny --task tiny", 110, 16),
    Screen("models", "sdpo models list", 100, 12),
    Screen("tasks", "sdpo tasks list", 100, 20),
    Screen("doctor", "sdpo doctor", 140, 16),
)


def recorded(screen: Screen, folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the final screen by its name and, if `middle` is set, the one that matches as `<name>-running`."""
    import pyte

    shown = pyte.Screen(screen.columns, screen.lines)
    stream = pyte.ByteStream(shown)
    stream.feed(f"$ {screen.command}\r\n".encode())
    found: dict[str, str] = {}

    def look(content: bytes) -> None:
        stream.feed(content)
        running = f"{screen.name}-running"
        if screen.middle and running not in found and re.search(screen.middle, text_of(shown.display)):
            found[running] = text_of(shown.display)

    run(screen, folder, environment, look)
    return {**found, screen.name: text_of(shown.display)}


def run(screen: Screen, folder: Path, environment: Mapping[str, str], look: Callable[[bytes], None]) -> None:
    """Run the command on a terminal of the screen's size, and pass its output to `look`."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", screen.lines, screen.columns, 0, 0))
    words = shlex.split(screen.command)
    try:
        with subprocess.Popen(
            words, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        ) as process:
            os.close(theirs)
            while select.select([ours], [], [], TIMEOUT)[0]:
                try:
                    content = os.read(ours, 65_536)
                except OSError:  # Linux: the command has closed its end
                    break
                if not content:
                    break
                look(content)
            else:
                process.kill()
    finally:
        os.close(ours)


def text_of(display: Sequence[str]) -> str:
    """Return the lines without trailing blanks."""
    return "\n".join(line.rstrip() for line in display).rstrip() + "\n"


def neutral(text: str) -> str:
    """Replace times, paths and figures of this machine by placeholders; the border of a frame stays in place."""
    lines = []
    for line in text.splitlines():
        changed = line
        for pattern, placeholder in PLACEHOLDERS:
            changed = re.sub(pattern, placeholder, changed)
        if changed != line and line.endswith("│"):
            inner = changed[:-1].rstrip()
            changed = f"{inner:<{len(line) - 1}}│"
        lines.append(changed.rstrip())
    return "\n".join(lines) + "\n"


def screens_in(page: str) -> dict[str, str]:
    """Return the screens of the page by name."""
    return {found[1]: found[2] for found in BLOCK.finditer(page)}


def put_into(page: str, screens: Mapping[str, str]) -> str:
    """Return the page with these screens in place of those of the same name."""
    return BLOCK.sub(lambda found: f"<!-- screen {found[1]} -->\n```text\n{screens.get(found[1], found[2])}```", page)


def main() -> None:
    """Record all screens, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these; the commands before them run all the same")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": work,
            "SDPO_HOME": f"{work}/home",
            "TERM": "xterm-256color",
            "LC_ALL": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
        }
        for screen in SCREENS:
            found = {name: neutral(text) for name, text in recorded(screen, Path(work), environment).items()}
            if not options.names or screen.name in options.names:
                PAGE.write_text(put_into(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
                print(*found)


if __name__ == "__main__":
    main()
