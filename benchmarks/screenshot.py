"""Take the pictures of a run's report and live view (needs Chromium):

python benchmarks/screenshot.py runs/first --selector '#tokens-0' --out docs/report.png
python benchmarks/screenshot.py runs/first --live-view 12 --width 1240 --height 660 --out docs/live-view.png
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from browser import browser


def main() -> None:
    """Write the page, open it in a browser, and save the visible part."""
    from sdpo_mlx.runs.report.collect import read_run
    from sdpo_mlx.runs.report.html import page

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--height", type=int, default=760)
    parser.add_argument("--selector", default="body", help="element to scroll to")
    parser.add_argument("--live-view", type=int, metavar="STEP", help="the live view after this step, not the report")
    options = parser.parse_args()
    file = options.run / ("live-view.html" if options.live_view else "report.html")
    text = live_view(options.run, options.live_view) if options.live_view else page([read_run(options.run)])
    file.write_text(text, encoding="utf-8")
    with browser() as tab:
        tab.open(file.resolve(), width=options.width, height=options.height)
        tab.value(f"document.querySelector({options.selector!r}).scrollIntoView()")
        tab.call("Emulation.setDefaultBackgroundColorOverride", color={"r": 0, "g": 0, "b": 0, "a": 0})
        shot = tab.call("Page.captureScreenshot", format="png")["data"]
    options.out.write_bytes(base64.b64decode(shot))


def live_view(run: Path, step: int) -> str:
    """Return a page with the live view of a run, as it was after a step."""
    from rich.console import Console
    from rich.terminal_theme import DIMMED_MONOKAI
    from sdpo_cli.commands import watch
    from sdpo_cli.terminal.live_view import LiveView
    from sdpo_cli.terminal.progress import Progress

    from sdpo_mlx.runs.events import read_events

    events = list(read_events(run / "events.jsonl"))
    header = watch._header(run, max(event["step"] for event in events))
    progress = Progress(replace(header, out=f"runs/{run.name}"))
    for event in events:
        if event["step"] <= step:
            progress.observe(event, ())
    progress.sample = watch._sample(run, step)
    progress.tasks.start("sampling")
    console = Console(
        record=True, width=100, height=30, force_terminal=True, color_system="truecolor", file=io.StringIO()
    )
    console.print(LiveView(progress))
    title = f"sdpo train --model {header.model} --task {header.task} --out runs/{run.name}"
    return f'<body style="margin:0; overflow:hidden">{console.export_svg(title=title, theme=DIMMED_MONOKAI)}</body>'


if __name__ == "__main__":
    main()
