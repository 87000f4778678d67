"""A long run of the embedded model: `python benchmarks/long_run.py --steps 500`.

Prints the slope of memory a step (MLX's active memory and the process's resident set, least squares over the last four
fifths), the number of open files at both ends, and the share of the wall clock outside generation and learning.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np


def main() -> None:
    """Train, watch, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = summary(watched(options.steps))
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def watched(steps: int) -> list[dict[str, Any]]:
    """Each step's figures, with what the process holds after it."""
    from sdpo_mlx.backends.mlx.policy import MLXPolicy
    from sdpo_mlx.course import carry_out
    from sdpo_mlx.run_folder import RunFolder
    from sdpo_mlx.settings import resolve
    from sdpo_mlx.setup import assemble

    flags = {"model.name": "tiny", "task.name": "tiny", "train.steps": steps, "train.eval_every": 0}
    setup = assemble(resolve(None, [], {**flags, "train.save_every": 50}).config)
    assert isinstance(setup.policy, MLXPolicy)
    rows: list[dict[str, Any]] = []

    def observe(event: Any, _: Any) -> None:
        if event["type"] == "step":
            rows.append({**event, "active": _active(), "resident": _resident(), "files": _files()})

    with RunFolder.open(Path(mkdtemp(prefix="sdpo-long-")) / "run") as folder:
        carry_out(setup, folder, observe, lambda: False, ["benchmark"])
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Slopes in bytes a step, files, and where the time went (shares of 1)."""
    late = rows[len(rows) // 5 :]
    steps = np.array([row["step"] for row in late], float)
    spent = {
        name: sum(row[f"time/{name}"] for row in rows) for name in ("generate", "grade", "teacher", "learn", "other")
    }
    total = sum(spent.values())
    return {
        "steps": len(rows),
        "active bytes a step": float(np.polyfit(steps, [row["active"] for row in late], 1)[0]),
        "resident bytes a step": float(np.polyfit(steps, [row["resident"] for row in late], 1)[0]),
        "files": [rows[0]["files"], rows[-1]["files"]],
        "seconds a step": total / len(rows),
        "shares": {name: seconds / total for name, seconds in spent.items()},
        "outside model computation": (spent["grade"] + spent["other"]) / total,
    }


def _active() -> int:
    import mlx.core as mx

    return mx.get_active_memory()


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # macOS tells the peak alone
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1_024)


def _files() -> int:
    folder = Path("/proc/self/fd")
    return len(list((folder if folder.is_dir() else Path("/dev/fd")).iterdir()))


if __name__ == "__main__":
    main()
