"""Measure how time and memory of the learning step grow with each dimension: `python benchmarks/growth.py --out FILE`.

Each dimension takes four values, each twice the one before; the exponent is the slope in log-log. A random Qwen3 in
float32, teacher and student on the same prompt, layer by layer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from memory import qwen
from performance import opened, samples, timed
from reporting import write_json

from sdpo_mlx.config import ObjectiveConfig

BASE = {"prompt": 256, "group": 4, "answer": 64, "vocabulary": 8_000, "blocks": 4, "micro-batch": 65_536}
VALUES = {
    "prompt": (128, 256, 512, 1_024),
    "answer": (32, 64, 128, 256),
    "group": (2, 4, 8, 16),
    "vocabulary": (8_000, 16_000, 32_000, 64_000),
    "blocks": (2, 4, 8, 16),
    "micro-batch": (512, 1_024, 2_048, 4_096),
}


def main() -> None:
    """Print the exponents; write all points as JSON to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name, values in VALUES.items():
        points = [
            measured({**BASE, **({"group": 16} if name == "micro-batch" else {}), name: value}) for value in values
        ]
        slopes = {what: slope(values, [p[what] for p in points]) for what in ("seconds", "peak")}
        rows.append({"dimension": name, "values": values, "points": points, "exponents": slopes})
        print(f"{name}: time ^{slopes['seconds']:.2f}, memory ^{slopes['peak']:.2f}", flush=True)
    write_json(options.out, rows)


def measured(work: dict[str, int]) -> dict[str, float]:
    """Return seconds (the better of two runs) and peak bytes above the memory held before."""
    policy = opened(qwen(work["blocks"], vocabulary=work["vocabulary"]), micro_batch_tokens=work["micro-batch"])
    given = samples(work["vocabulary"], work["prompt"], work["group"], work["answer"], work["prompt"])
    runs = [timed(lambda: policy.learn(given, ObjectiveConfig(), 1e-5)) for _ in range(3)][1:]
    return {"seconds": min(spent for spent, _ in runs), "peak": float(max(peak for _, peak in runs))}


def slope(values: Any, figures: Any) -> float:
    """Return the exponent of a power law through the points."""
    return float(np.polyfit(np.log(values), np.log(figures), 1)[0])


if __name__ == "__main__":
    main()
