"""Measure start-up times: `python benchmarks/startup.py --out FILE`.

Each round runs these in new processes: Python alone, `import mlx_lm`, `sdpo --help`, the first token (`sdpo rollout`
with one token), and the first step (`sdpo train` up to its first `step` event, the score before training included).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

from reporting import write_json

SDPO = ("-c", "from sdpo_cli.main import main; main()")
ON_TINY = ("--model", "tiny", "--task", "tiny", "--plain")


def main() -> None:
    """Print the medians; write all seconds as JSON to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, seconds in (
            ("python, nothing imported", spent("-c", "pass")),
            ("import mlx_lm", spent("-c", "import mlx_lm")),
            ("sdpo --help", spent(*SDPO, "--help")),
            ("first token", spent(*SDPO, "rollout", *ON_TINY, "--group-size", "1", "--set", "rollout.max_tokens=1")),
            ("first step", first_step()),
        ):
            found.setdefault(name, []).append(seconds)
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, value in medians.items():
        print(f"{name}: {value:.2f} s ({min(found[name]):.2f} to {max(found[name]):.2f})")
    write_json(options.out, found)


def spent(*arguments: str) -> float:
    """Return the seconds of a Python process."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - begun


def first_step() -> float:
    """Return the seconds from the start of `sdpo train` to its first `step` event."""
    out, begun = Path(mkdtemp(prefix="sdpo-start-")) / "run", time.time()
    spent(*SDPO, "train", *ON_TINY, "--steps", "1", "--set", "eval.problems=16", "--out", str(out))
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return next(float(event["time"]) for event in events if event["type"] == "step") - begun


if __name__ == "__main__":
    main()
