"""Measure a long run of the embedded model: `python benchmarks/long_run.py --steps 500`.

Prints the slope of memory per step (least squares over the last four fifths) of MLX's active memory, of the resident
set, and of the resident set after free memory was returned to the system (every TRIMMED_EVERY steps). Prints also the
number of open files at both ends, and the share of the wall-clock time, checkpoints and logs included, that is not
generation, teacher or learning.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from reporting import peak_resident, write_json

TRIMMED_EVERY = 20
PHASES = ("generate", "grade", "teacher", "learn", "other")


def main() -> None:
    """Train, print the figures, and write them as JSON to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = summary(measured(options.steps))
    print(json.dumps(found, indent=1))
    write_json(options.out, found)


def measured(steps: int) -> list[dict[str, Any]]:
    """Return the figures of each step, and the memory of the process after it."""
    from sdpo_mlx.backends.mlx.policy import MLXPolicy
    from sdpo_mlx.config.resolve import resolve
    from sdpo_mlx.rl.components import build_components
    from sdpo_mlx.runs.folder import RunFolder
    from sdpo_mlx.trainer import fit

    flags = {"model.name": "tiny", "task.name": "tiny", "train.steps": steps, "train.eval_every": 0}
    setup = build_components(resolve(None, [], {**flags, "train.save_every": 50}).config)
    assert isinstance(setup.policy, MLXPolicy)
    rows: list[dict[str, Any]] = []

    def observe(event: Any, _: Any) -> None:
        if event["type"] == "step":
            rows.append(_row(event))

    with RunFolder.open(Path(mkdtemp(prefix="sdpo-long-")) / "run") as folder:
        fit(setup, folder, observe, command=["benchmark"])
    return rows


def _row(event: dict[str, Any]) -> dict[str, Any]:
    trimmed = event["step"] % TRIMMED_EVERY == 0
    held = {"active": _active(), "resident": _resident(), "files": _files(), "clock": time.perf_counter()}
    times = {name: event[f"time/{name}"] for name in PHASES}
    return {"step": event["step"], **times, **held, "trimmed": _resident_trimmed() if trimmed else None}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return slopes in bytes per step, open files, and shares of the time."""
    late = rows[len(rows) // 5 :]
    spent = {name: sum(row[name] for row in rows[1:]) for name in PHASES}
    total = sum(spent.values())
    wall = rows[-1]["clock"] - rows[0]["clock"]
    computing = spent["generate"] + spent["teacher"] + spent["learn"]
    return {
        "steps": len(rows),
        "active bytes a step": _slope(late, "active"),
        "resident bytes a step": _slope(late, "resident"),
        "resident bytes a step, free memory given back": _slope([row for row in late if row["trimmed"]], "trimmed"),
        "given back, every": TRIMMED_EVERY,
        "resident, free memory given back": [row["trimmed"] for row in rows if row["trimmed"]],
        "files": [rows[0]["files"], rows[-1]["files"]],
        "seconds a step": total / (len(rows) - 1),
        "shares": {name: seconds / total for name, seconds in spent.items()},
        "outside model computation": 1 - computing / wall,
    }


def _slope(rows: list[dict[str, Any]], key: str) -> float | None:
    if len(rows) < 2:
        return None
    return float(np.polyfit([row["step"] for row in rows], [row[key] for row in rows], 1)[0])


def _resident_trimmed() -> int:
    """Return the resident set in bytes after Python, MLX and (glibc only) the allocator released free memory."""
    import mlx.core as mx

    gc.collect()
    mx.clear_cache()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return _resident()


def _active() -> int:
    import mlx.core as mx

    return mx.get_active_memory()


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # macOS reports only the peak
        return peak_resident()


def _files() -> int:
    folder = Path("/proc/self/fd")
    return len(list((folder if folder.is_dir() else Path("/dev/fd")).iterdir()))


if __name__ == "__main__":
    main()
