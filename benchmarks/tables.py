"""The tables in docs/ that come from docs/figures: `python benchmarks/tables.py` writes them anew.

Each stands on its page between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a key of `TABLES`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
PLACE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
SHOWN = (8, 16, 32, 64)  # attempts
METHODS = {"sdpo": "SDPO", "best-of-k": "best-of-k", "multi-turn": "multi-turn"}

Cells = Sequence[Sequence[str]]


def main() -> None:
    """Every page that has such a place."""
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        page.write_text(filled(text), encoding="utf-8")


def filled(text: str) -> str:
    """A page with its tables as the figures have them now."""
    return PLACE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def table(head: Sequence[str], rows: Cells) -> str:
    """Markdown."""
    first, *rest = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return "\n".join([first, "|" + "---|" * len(head), *rest])


def figures(name: str) -> Any:
    """What a program left in docs/figures."""
    return json.loads((DOCS / "figures" / f"{name}.json").read_text(encoding="utf-8"))


def discovery() -> str:
    """The embedded model's hard problems; without suggestions best-of-k is the same, since it reads nothing."""
    told, untold = figures("discovery")["methods"], figures("discovery_no_suggestion")["methods"]
    columns = {METHODS[name]: told[name] for name in METHODS}
    columns |= {f"{METHODS[name]}, no suggestions": untold[name] for name in ("sdpo", "multi-turn")}
    return curves(columns)


def discovery_code() -> str:
    """SmolLM2's hard problems."""
    methods = figures("discovery_code")["methods"]
    return curves({METHODS[name]: methods[name] for name in METHODS if name in methods})


def curves(columns: Mapping[str, Any]) -> str:
    """discovery@k with intervals, a column a method."""
    points = {name: {point["k"]: point for point in found["curve"]} for name, found in columns.items()}
    ks = [k for k in SHOWN if all(k in found for found in points.values())]
    return table(["attempts", *columns], [[str(k), *(_share(points[name][k]) for name in columns)] for k in ks])


def _share(point: Mapping[str, float]) -> str:
    ends = (round(100 * point[name]) for name in ("low", "high"))
    return f"{100 * point['discovery']:.1f} % ({' to '.join(map(str, ends))})"


def privileged(first: str, *parts: str) -> Callable[[], str]:
    """Held-out success before and after, mean and range over the seeds; half way where there is one seed."""

    def made() -> str:
        runs = [run for run in figures("sdft")["runs"] if run["part"] in parts]
        several, single = len({run["task"] for run in runs}) > 1, len({run["seed"] for run in runs}) == 1
        rows = []
        for task, label in dict.fromkeys((run["task"], run["label"]) for run in runs):
            chosen = [run for run in runs if (run["task"], run["label"]) == (task, label)]
            before, after = ([run[name] for run in chosen] for name in ("before", "after"))
            same = "" if any(run["changed"] for run in chosen) else ", no byte changed"
            curve = chosen[0]["curve"]
            range_ = f"{curve[len(curve) // 2][2]:.2f}" if single else f"{min(after):.2f} to {max(after):.2f}"
            spread = f"{mean(after):.2f} ({range_}){same}"
            rows.append([*([f"`{task}`"] if several else []), label, f"{mean(before):.2f}", spread])
        return table(
            [*(["task"] if several else []), first, "before", "after (half way)" if single else "after (range)"], rows
        )

    return made


TABLES: Mapping[str, Callable[[], str]] = {
    "discovery": discovery,
    "discovery-code": discovery_code,
    "references": privileged("teacher reads", "sdft"),
    "remarks": privileged("the person", "coach"),
    "episodes": privileged("the person", "coach-game", "coach-tries"),
}


if __name__ == "__main__":
    main()
