"""Take a picture of a run's report: `python benchmarks/screenshot.py RUN --out docs/report.png` (needs Chromium)."""

from __future__ import annotations

import argparse
import base64
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from browser import browser


def main() -> None:
    """Write the report, open it in a browser, and save the visible part."""
    from sdpo_mlx.runs.report.collect import read_run
    from sdpo_mlx.runs.report.html import page

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--height", type=int, default=760)
    parser.add_argument("--selector", default="h1", help="element to scroll to")
    options = parser.parse_args()
    file = options.run / "report.html"
    file.write_text(page([read_run(options.run)]), encoding="utf-8")
    with browser() as tab:
        tab.open(file.resolve(), width=options.width, height=options.height)
        tab.value(f"document.querySelector({options.selector!r}).scrollIntoView()")
        shot = tab.call("Page.captureScreenshot", format="png")["data"]
    options.out.write_bytes(base64.b64decode(shot))


if __name__ == "__main__":
    main()
