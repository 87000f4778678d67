"""What one grading costs in the sandbox above the bare start of the same interpreter with the same program.

Both kinds alternate, so that a busy machine slows them alike. The bare one gets the same flags, bootstrap,
limits and input, but no bubblewrap: `python benchmarks/sandbox_overhead.py [RUNS]`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

from sdpo_mlx.sandbox.base import Sandbox
from sdpo_mlx.sandbox.bubblewrap import BubblewrapSandbox
from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox
from sdpo_mlx.tasks.code_judge import Turnstile, run_tests

TARGET_MS = 30.0


TESTS = [
    {"kind": "functional", "args": [n], "expected": n, "public": True, "tolerance": None, "unordered": False}
    for n in range(3)
]


def grade(sandbox: Sandbox) -> None:
    """Grade one right answer on three tests: one start."""
    outcomes = run_tests(sandbox, Turnstile(), "def f(x): return x", "f", TESTS)
    if [outcome.verdict for outcome in outcomes] != ["pass"] * 3:
        raise SystemExit(f"{sandbox.kind} does not grade: {outcomes}")


def milliseconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    action()
    return 1_000 * (time.perf_counter() - start)


def measure(runs: int) -> dict[str, float]:
    """Medians in milliseconds, of each kind and of the differences of neighbours, and the ratio of the medians."""
    boxed, bare = BubblewrapSandbox(), UnconfinedSandbox()
    pairs = [(milliseconds(lambda: grade(boxed)), milliseconds(lambda: grade(bare))) for _ in range(runs + 1)][1:]
    inside, outside = statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)
    return {
        "sandbox_ms": inside,
        "bare_ms": outside,
        "overhead_ms": statistics.median(a - b for a, b in pairs),
        "ratio": inside / outside,
        "best_overhead_ms": min(a for a, _ in pairs) - min(b for _, b in pairs),
    }


def main() -> None:
    """Print the figures; fail above the target."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    os.chdir(tempfile.gettempdir())
    found = measure(runs)
    print(json.dumps({"runs": runs, **{name: round(value, 2) for name, value in found.items()}}))
    if found["overhead_ms"] > TARGET_MS:
        raise SystemExit(f"above the target of {TARGET_MS:.0f} ms")


if __name__ == "__main__":
    main()
