"""Pictures of learning curves (matplotlib, extra `results`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {"SDPO, default contexts": "#0b6e99", "GRPO, best learning rate": "#c9622e"}


def draw_curves(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Held-out success against sampled answers: a thin line a seed, the mean thick."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 3.8), dpi=120)
    for label, colour in COLOURS.items():
        chosen = [run for run in runs if run["label"] == label]
        for run in chosen:
            axes.plot([p[1] for p in run["curve"]], [p[2] for p in run["curve"]], color=colour, alpha=0.25, lw=1)
        points = [point[1] for point in chosen[0]["curve"]] if chosen else []
        mean = [sum(run["curve"][i][2] for run in chosen) / len(chosen) for i in range(len(points))]
        axes.plot(points, mean, color=colour, lw=2.5, label=f"{label} ({len(chosen)} seeds)")
    axes.set(xlabel="sampled answers", ylabel="held-out success", ylim=(0, 1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)


def draw_growth(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Seconds and peak memory of a step against each dimension, both as multiples of their first value."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.8), dpi=120, sharey=True)
    for axes, what in zip(panels, ("seconds", "peak"), strict=True):
        for row in rows:
            sizes, figures = row["values"], [point[what] for point in row["points"]]
            label = f"{row['dimension']}: {row['exponents'][what]:.2f}"
            axes.loglog([s / sizes[0] for s in sizes], [f / figures[0] for f in figures], marker="o", ms=3, label=label)
        axes.set(xlabel="dimension / its first value", title="time" if what == "seconds" else "peak memory")
        axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"], minor=False)
        axes.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, title="exponent", title_fontsize=8)
    panels[0].set_ylabel("figure / its first value")
    figure.tight_layout()
    figure.savefig(path)
