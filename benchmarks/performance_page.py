"""Write docs/performance.md and its charts from docs/figures: `python benchmarks/performance_page.py`.

Each file in docs/figures is the `--out` of the benchmark of its name; `rows.json` that of `performance.py`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import median_high
from typing import Any

from reporting import markdown_table

from sdpo_mlx.runs.report.svg import Series, line_chart

DOCS = Path(__file__).parents[1] / "docs"
LABELS = {"ours": "sdpo-mlx, SDPO", "peer": "mlx-lm-lora, GRPO", "peer-checkpointed": "mlx-lm-lora, GRPO, recomputing"}


def main() -> None:
    """Write the page and the charts."""
    figures = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (DOCS / "figures").glob("*.json")}
    text = (Path(__file__).parent / "performance_page.md").read_text(encoding="utf-8")
    parts = {
        "where": ", ".join(f"{name} {value}" for name, value in figures["rows"]["where"].items()),
        "table": table(figures["rows"]["rows"]),
        "delta": table(figures["gated_delta"]["rows"]),
        "delta rounds": "one round"
        if figures["gated_delta"]["rounds"] == 1
        else f"{figures['gated_delta']['rounds']} rounds",
        "attention": table(figures["composed_attention"]["rows"]),
        "growth": growth(figures["growth"]),
        "peer": peer(figures["mlx_lm_lora"]),
        "startup": startup(figures["startup"]),
        "long": long_run(figures["long_run"]),
        "candidates": candidates(figures["candidates"]["rows"]),
    }
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    (DOCS / "performance.md").write_text(text, encoding="utf-8")
    for key, name in (("seconds", "time"), ("peak", "memory")):
        (DOCS / f"growth-{name}.svg").write_text(growth_chart(figures["growth"], key) + "\n", encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of all comparisons."""
    head = ["ours / theirs", "case", "s", "s", "peak MB", "peak MB", "time ratio (range)", "peak ratio", "target"]
    cells = []
    for row in rows:
        time, peak = row["time"], row["peak"]
        spread = f"{time['ratio']:.2f} ({time['low']:.2f} to {time['high']:.2f})"
        seconds = [f"{time[side]:.2f}" for side in ("ours", "theirs")]
        peaks = [f"{peak[side] / 2**20:.0f}" for side in ("ours", "theirs")]
        cells.append([row["row"], row["case"], *seconds, *peaks, spread, f"{peak['ratio']:.2f}", row["aim"]])
    return markdown_table(head, cells)


def growth(rows: list[dict[str, Any]]) -> str:
    """Return the table of exponents."""
    cells = []
    for row in rows:
        ends = [f"{row['values'][end]:,}" for end in (0, -1)]
        cells.append([row["dimension"], *ends, *(f"{row['exponents'][name]:.2f}" for name in ("seconds", "peak"))])
    return markdown_table(["dimension", "from", "to", "time", "peak memory"], cells)


def growth_chart(rows: list[dict[str, Any]], key: str) -> str:
    """Return a log-log chart: doublings of `key` against doublings of each dimension, so that slopes are exponents."""
    lines = []
    for at, row in enumerate(rows):
        xs = [math.log2(value / row["values"][0]) for value in row["values"]]
        ys = [math.log2(point[key] / row["points"][0][key]) for point in row["points"]]
        name = f"{row['dimension']} (exponent {row['exponents'][key]:.2f})"
        lines.append(Series(name, xs, ys, colour=at, dash=at + at // 5))  # five styles: the sixth line shares a colour
    what = "step time" if key == "seconds" else "peak memory"
    label = f"doublings of the {what}"
    return line_chart(lines, title=f"Growth of the {what}", x_label="doublings of the dimension", y_label=label)


def peer(sides: dict[str, Any]) -> str:
    """Return the table of seconds and peaks of a whole step."""
    ours, cells = sides["ours"], []
    for side, row in sides.items():
        peaks = [f"{row[name] / 2**30:.2f} GiB" for name in ("mlx", "resident")]
        ratios = [f"{row[name] / ours[name]:.2f}" for name in ("seconds", "mlx")]
        cells.append([LABELS[side], f"{row['seconds']:.1f}", *peaks, *ratios])
    return markdown_table(["", "s per step", "peak, MLX", "peak, process", "time / ours", "MLX / ours"], cells)


def startup(found: dict[str, list[float]]) -> str:
    """Return the table of start-up times: medians and ranges."""
    cells = [
        [name, f"{median_high(values):.2f} ({min(values):.2f} to {max(values):.2f})"] for name, values in found.items()
    ]
    return markdown_table(["", "s (range)"], cells)


def long_run(found: dict[str, Any]) -> str:
    """Return the paragraph about the long run."""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in found["shares"].items())
    return (
        f"{found['steps']} steps of the embedded model, {found['seconds a step']:.2f} s each: "
        f"{found['active bytes a step']:.0f} bytes per step more in MLX's counter,\n"
        f"{found['resident bytes a step']:,.0f} in the process, "
        f"{found['resident bytes a step, free memory given back']:,.0f} after free memory was returned to the system;\n"
        f"open files {found['files'][0]} at the first step, {found['files'][1]} at the last.\n"
        f""
        f"Where the time went: {shares}. Outside model computation: {found['outside model computation']:.1%}."
    )


def candidates(rows: list[dict[str, Any]]) -> str:
    """Return the table of the cost of `log.candidates`: share of a step, ratios and bytes."""
    ratios_of = {"candidates 0": "step / without (range)", "samples 0": "step / no rollouts stored"}
    cells = []
    for row in rows:
        pairs = [row["ratios"][name] for name in ratios_of]
        ratios = [f"{pair['ratio']:.2f} ({pair['low']:.2f} to {pair['high']:.2f})" for pair in pairs]
        size = row["bytes a step"]
        stored = f"{size['candidates 1']:,.0f} (without {size['candidates 0']:,.0f})"
        cost = [f"{row['look']:.3f}", str(row["every"]), f"{row['share']:.1%}"]
        cells.append([row["case"], *cost, *ratios, stored])
    head = ["case", "s", "every n steps", "share", *ratios_of.values(), "bytes per step"]
    return markdown_table(head, cells)


if __name__ == "__main__":
    main()
