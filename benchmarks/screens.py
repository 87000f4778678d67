"""What the commands look like, as text: `python benchmarks/screens.py` runs each in a pseudo-terminal.

Writes `docs/screens/*.txt` and puts the same into `docs/terminal.md`. Times, paths and figures of the machine are made
neutral, so that a new recording differs where the screens do. Needs pyte (`pip install pyte`).
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
PAGE, FOLDER = ROOT / "docs" / "terminal.md", ROOT / "docs" / "screens"
LONGEST = 300.0  # seconds that a command may take
MACHINES_OWN: Sequence[tuple[str, str]] = (
    (r"\b(?:\d+:)?\d+:\d\d\b", "-:--"),
    (r"(?<![\w./:])(?:/[\w.@+-]+)+/([\w.@+-]+)", r"/.../\1"),
    (r"\b[\d.,]+ (GFLOP/s|cores|GB free)", r"N \1"),
    (r"\bof [\d.,]+ GB", "of N GB"),
    (r"Linux-\S+", "Linux"),
    (r"(generation|learning) [\d,]+", r"\1 N"),
)


@dataclass(frozen=True)
class Screen:
    """One command on a terminal of this size; `middle` is what its screen shows when it is caught on the way."""

    name: str
    command: str
    columns: int = 80
    lines: int = 24
    middle: str = ""


TRAIN = "sdpo train --model tiny --task tiny --steps 6 --out runs/first"
SCREENS = (
    Screen("train", TRAIN, lines=36, middle=r"step +[34]/6[\s\S]*now +sampling +[1-9]"),
    Screen("train-narrow", TRAIN.replace("first", "second"), 40, 12, r"step +[23]/6[\s\S]*now +(sampling|learning)"),
    Screen("watch", "sdpo watch runs/first --once", lines=22),
    Screen("runs", "sdpo runs", 100, 4),
    Screen("eval", "sdpo eval runs/first --problems 8 --samples 4 --plain", lines=26),
    Screen("compare", "sdpo compare runs/first --problems 16 --samples 2 --plain", lines=32),
    Screen("solve", "sdpo solve --model tiny --task tiny:mid --attempts 24 --group-size 4 --plain", 100, 56),
    Screen("plan", "sdpo plan --model tiny --task tiny", 110, 16),
    Screen("models", "sdpo models list", 100, 12),
    Screen("tasks", "sdpo tasks list", 100, 20),
    Screen("doctor", "sdpo doctor", 140, 16),
)


def recorded(screen: Screen, folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The screen at the end by its name and, where one is asked for, in the middle as `<name>-running`."""
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
    """Run the command at a terminal of the screen's size, and hand on what it writes there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", screen.lines, screen.columns, 0, 0))
    words = shlex.split(screen.command)
    try:
        with subprocess.Popen(
            words, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        ) as process:
            os.close(theirs)
            while select.select([ours], [], [], LONGEST)[0]:
                try:
                    content = os.read(ours, 65_536)
                except OSError:  # Linux: nobody holds the other end any more
                    break
                if not content:
                    break
                look(content)
            else:
                process.kill()
    finally:
        os.close(ours)


def text_of(display: Sequence[str]) -> str:
    """The lines without blanks at their ends and at the end of all."""
    return "\n".join(line.rstrip() for line in display).rstrip() + "\n"


def neutral(text: str) -> str:
    """The same without what only this machine and this hour say; a frame keeps its right side where it was."""
    lines = []
    for line in text.splitlines():
        changed = line
        for pattern, put in MACHINES_OWN:
            changed = re.sub(pattern, put, changed)
        if changed != line and line.endswith("│"):
            inner = changed[:-1].rstrip()
            changed = f"{inner:<{len(line) - 1}}│"
        lines.append(changed.rstrip())
    return "\n".join(lines) + "\n"


def put_into(page: str, screens: Mapping[str, str]) -> str:
    """The page with each block after `<!-- screen NAME -->` made what the screen shows."""

    def block(found: re.Match[str]) -> str:
        return f"<!-- screen {found[1]} -->\n```text\n{screens[found[1]]}```"

    return re.sub(r"<!-- screen ([\w-]+) -->\n```text\n(?:(?!```)[\s\S])*```", block, page)


def main() -> None:
    """Record all screens, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these; what comes before them runs all the same")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        kept = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": work,
            "SDPO_HOME": f"{work}/home",
        }
        environment = {**kept, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
        FOLDER.mkdir(exist_ok=True)
        for screen in SCREENS:
            for name, text in recorded(screen, Path(work), environment).items():
                if not options.names or screen.name in options.names:
                    (FOLDER / f"{name}.txt").write_text(neutral(text), encoding="utf-8")
                    print(f"docs/screens/{name}.txt")
    screens = {file.stem: file.read_text(encoding="utf-8") for file in FOLDER.glob("*.txt")}
    PAGE.write_text(put_into(PAGE.read_text(encoding="utf-8"), screens), encoding="utf-8")


if __name__ == "__main__":
    main()
