"""The page from the figures: `python benchmarks/performance_page.py FILE... > docs/performance.md`.

The files are those that `benchmarks/performance.py --out` wrote; where a row was measured twice the later file counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Print the page."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    where: dict[str, str] = {}
    for name in sys.argv[1:]:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
        where = found["where"]
        rows.update({(row["row"], row["case"]): row for row in found["rows"]})
    text = (Path(__file__).parent / "performance_page.md").read_text(encoding="utf-8")
    text = text.replace("<!-- where -->", ", ".join(f"{name} {value}" for name, value in where.items()))
    print(text.replace("<!-- table -->", table(rows)), end="")


def table(rows: dict[tuple[str, str], dict[str, Any]]) -> str:
    """All rows, ratios last."""
    lines = [
        "| ours / theirs | case | s | s | peak MB | peak MB | time ratio (range) | peak ratio | aim |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, case), row in rows.items():
        time, peak = row["time"], row["peak"]
        spread = f"{time['ratio']:.2f} ({time['low']:.2f} to {time['high']:.2f})"
        held = [f"{peak[side] / 2**20:.0f}" for side in ("ours", "theirs")]
        lines.append(
            f"| {name} | {case} | {time['ours']:.2f} | {time['theirs']:.2f} | {' | '.join(held)} | {spread} "
            f"| {peak['ratio']:.2f} | {row['aim']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
