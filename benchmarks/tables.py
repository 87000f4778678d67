"""Write the tables in docs/ that come from docs/figures: `python benchmarks/tables.py`.

A table is between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a key of `TABLES`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from reporting import markdown_table

DOCS = Path(__file__).parents[1] / "docs"
SLOT = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
ATTEMPTS = (8, 16, 32, 64)  # attempts
METHODS = {"sdpo": "SDPO", "best-of-k": "best-of-k", "multi-turn": "multi-turn"}


def main() -> None:
    """Update every page."""
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        page.write_text(filled(text), encoding="utf-8")


def filled(text: str) -> str:
    """Return the text of a page with its tables made from the figures."""
    return SLOT.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def figures(name: str) -> Any:
    """Read a file of docs/figures."""
    return json.loads((DOCS / "figures" / f"{name}.json").read_text(encoding="utf-8"))


def discovery() -> str:
    """Return the table of the embedded model. Best-of-k is the same without suggestions, since it reads no feedback."""
    full, no_suggestion = figures("discovery")["methods"], figures("discovery_no_suggestion")["methods"]
    columns = {METHODS[name]: full[name] for name in METHODS}
    columns |= {f"{METHODS[name]}, no suggestions": no_suggestion[name] for name in ("sdpo", "multi-turn")}
    return curves(columns)


def discovery_code() -> str:
    """Return the table of SmolLM2."""
    methods = figures("discovery_code")["methods"]
    return curves({METHODS[name]: methods[name] for name in METHODS if name in methods})


def curves(columns: Mapping[str, Any]) -> str:
    """Return discovery@k with intervals, one column per method."""
    points = {name: {point["k"]: point for point in found["curve"]} for name, found in columns.items()}
    ks = [k for k in ATTEMPTS if all(k in found for found in points.values())]
    return markdown_table(
        ["attempts", *columns], [[str(k), *(_share(points[name][k]) for name in columns)] for k in ks]
    )


def _share(point: Mapping[str, float]) -> str:
    ends = (round(100 * point[name]) for name in ("low", "high"))
    return f"{100 * point['discovery']:.1f} % ({' to '.join(map(str, ends))})"


def before_and_after(first: str, *parts: str) -> Callable[[], str]:
    """Return a table of held-out success before and after: mean and range of the seeds, or half way with one seed."""

    def made() -> str:
        runs = [run for run in figures("sdft")["runs"] if run["part"] in parts]
        several, single = len({run["task"] for run in runs}) > 1, len({run["seed"] for run in runs}) == 1
        rows = []
        for task, label in dict.fromkeys((run["task"], run["label"]) for run in runs):
            chosen = [run for run in runs if (run["task"], run["label"]) == (task, label)]
            before, after = ([run[name] for run in chosen] for name in ("before", "after"))
            unchanged = "" if any(run["changed"] for run in chosen) else ", no byte changed"
            curve = chosen[0]["curve"]
            range_ = f"{curve[len(curve) // 2][2]:.2f}" if single else f"{min(after):.2f} to {max(after):.2f}"
            spread = f"{mean(after):.2f} ({range_}){unchanged}"
            rows.append([*([f"`{task}`"] if several else []), label, f"{mean(before):.2f}", spread])
        return markdown_table(
            [*(["task"] if several else []), first, "before", "after (half way)" if single else "after (range)"], rows
        )

    return made


def architectures(backend: str) -> Callable[[], str]:
    """Return the table of a backend's architectures, those that learn in the same way in one row."""

    def made() -> str:
        table = json.loads((DOCS.parent / "sdpo_mlx/assets/architectures.json").read_text(encoding="utf-8"))[backend]
        rows: dict[tuple[str, ...], list[str]] = {}
        for name, found in table.items():
            reason = next((f"{word}: {found[word]}" for word in ("refused", "untried") if word in found), "")
            way = (reason, "") if reason else (found["learning"], found["generation"])
            rows.setdefault(way, []).append(name)
        memory = {name: found["memory"] for name, found in table.items() if "memory" in found}
        lines = []
        for way, names in sorted(rows.items(), key=lambda row: -len(row[1])):
            figures = [memory[name] for name in names if name in memory]
            spread = f"{min(figures):.2f} to {max(figures):.2f}" if figures else ""
            shown = ", ".join(f"`{name}`" for name in names)
            lines.append([str(len(names)), *way, *([spread] if memory else []), shown])
        head = ["count", "learning", "generation", *(["memory"] if memory else []), "architectures"]
        return markdown_table(head, lines)

    return made


def mac_memory() -> str:
    """Return what fits a Mac of each size."""
    rows = []
    for each in figures("mac_memory"):
        command = f"`--model {each['model']} --group-size {each['group_size']} --max-tokens {each['max_tokens']}`"
        peak, limit = (f"{each[name] / 2**30:.1f} GB" for name in ("peak", "limit"))
        rows.append([each["memory"].replace("GB", " GB"), command, peak, limit])
    return markdown_table(["Mac", "`sdpo train --task code` and", "planned peak", "of"], rows)


def long_rollouts() -> str:
    """Return the longest rollouts of each model on a Mac of each size, with the planned peak."""
    rows = figures("long_rollouts")
    memories, models = (list(dict.fromkeys(row[name] for row in rows)) for name in ("memory", "model"))
    found = {(row["model"], row["memory"]): row for row in rows}
    cells = [[f"`{model}`", *(_longest(found[model, memory]) for memory in memories)] for model in models]
    return markdown_table(["`--model`", *(memory.replace("GB", " GB") for memory in memories)], cells)


def _longest(row: Mapping[str, Any]) -> str:
    return "-" if row["max_tokens"] is None else f"{row['max_tokens']:,} ({row['peak'] / 2**30:.1f} GB)"


TABLES: Mapping[str, Callable[[], str]] = {
    "architectures-mlx": architectures("mlx"),
    "architectures-torch": architectures("torch"),
    "discovery": discovery,
    "discovery-code": discovery_code,
    "long-rollouts": long_rollouts,
    "mac-memory": mac_memory,
    "references": before_and_after("teacher reads", "sdft"),
    "remarks": before_and_after("the person", "coach"),
    "episodes": before_and_after("the person", "coach-game", "coach-tries"),
}


if __name__ == "__main__":
    main()
