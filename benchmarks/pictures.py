"""The pictures of README: live view and report of one run, drawn by headless Chromium.

sdpo train --model tiny --task tiny --steps 15 --out runs/first
python benchmarks/pictures.py runs/first
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from sdpo_cli.commands import watch
from sdpo_cli.terminal.live_view import LiveView
from sdpo_cli.terminal.progress import Progress

from sdpo_mlx.api import write_report
from sdpo_mlx.runs.events import read_events

DOCS = Path(__file__).parents[1] / "docs"
LAST_STEP = 12  # the live view shows the run after this step


def live_view(run: Path) -> str:
    """Return the live view of a run as SVG, as it was after LAST_STEP."""
    events = [event for event in read_events(run / "events.jsonl") if event["step"] <= LAST_STEP]
    steps = max(event["step"] for event in read_events(run / "events.jsonl"))
    progress = Progress(replace(watch._header(run, steps), out="runs/first"))
    for event in events:
        progress.observe(event, ())
    progress.sample = watch._sample(run, LAST_STEP)
    progress.tasks.start("sampling")
    console = Console(
        record=True, width=100, height=30, force_terminal=True, color_system="truecolor", file=io.StringIO()
    )
    console.print(LiveView(progress))
    return console.export_svg(title="sdpo train --model tiny --task tiny --out runs/first", theme=DIMMED_MONOKAI)


def picture(page: Path, size: str, out: Path) -> None:
    """Draw a page in a window of this size."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={size}"]
    subprocess.run(["chromium", *options, f"--screenshot={out}", page.as_uri()], check=True, capture_output=True)


def main() -> None:
    """Draw both pictures of the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    with tempfile.TemporaryDirectory() as work:
        view = Path(work, "live-view.html")
        view.write_text(f'<body style="margin:0">{live_view(run)}</body>', encoding="utf-8")
        picture(view, "1240,660", DOCS / "live-view.png")
        picture(write_report([run], Path(work, "report.html")).resolve(), "1000,760", DOCS / "report.png")


if __name__ == "__main__":
    main()
