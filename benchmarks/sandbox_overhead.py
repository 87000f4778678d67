"""Measure the cost of the sandbox: one grading compared with a bare start of the same interpreter and program.

Both alternate, so that other work on the machine slows them alike. The bare start has the same flags, bootstrap, limits
and input, but no bubblewrap. Needs a quiet machine; the load is printed too.
`python benchmarks/sandbox_overhead.py [RUNS]`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable

from sdpo_mlx.sandbox.base import RunResult, Sandbox
from sdpo_mlx.sandbox.bubblewrap import BubblewrapSandbox
from sdpo_mlx.sandbox.interpreter import find_interpreter
from sdpo_mlx.sandbox.launch import ENVIRONMENT, INTERPRETER_FLAGS, Limits, bootstrap, payload
from sdpo_mlx.tasks.code.runner import Program, Turnstile, run_tests

TARGET_MS = 30.0


TESTS = [
    {"kind": "functional", "args": [n], "expected": n, "public": True, "tolerance": None, "unordered": False}
    for n in range(3)
]


class Bare:
    """A bare start of the same interpreter: no sandbox, no temporary folder, no watchdog."""

    kind = "bare"

    def run(self, program: str, stdin: bytes = b"", *, seconds: float | None = None) -> RunResult:  # noqa: ARG002
        """Run the program and wait for it."""
        python = str(find_interpreter().executable)
        argv = [python, *INTERPRETER_FLAGS, "-c", bootstrap(), *Limits().arguments(6, count_processes=False)]
        done = subprocess.run(argv, input=payload(program, stdin), capture_output=True, env=ENVIRONMENT, check=False)
        return RunResult("exited", done.returncode, done.stdout, done.stderr, 0.0)

    def self_test(self) -> dict[str, bool]:
        """Return no checks."""
        return {}


def grade(sandbox: Sandbox) -> None:
    """Grade one right answer on three tests, in one start."""
    outcomes = run_tests(sandbox, Turnstile(), Program("def f(x): return x", "f"), TESTS)
    if [outcome.verdict for outcome in outcomes] != ["pass"] * 3:
        raise SystemExit(f"{sandbox.kind} does not grade: {outcomes}")


def milliseconds(action: Callable[[], object]) -> float:
    """Return the duration of one call in milliseconds."""
    start = time.perf_counter()
    action()
    return 1_000 * (time.perf_counter() - start)


def measure(runs: int) -> dict[str, float]:
    """Return medians in milliseconds: of each kind and of the differences of neighbouring runs; and their ratio."""
    boxed, bare = BubblewrapSandbox(), Bare()
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
    """Print the figures; fail if the overhead is above the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=int, nargs="?", default=200)
    runs = parser.parse_args().runs
    os.chdir(tempfile.gettempdir())
    found = measure(runs)
    print(
        json.dumps(
            {
                "runs": runs,
                "load": round(os.getloadavg()[0], 2),
                **{name: round(value, 2) for name, value in found.items()},
            }
        )
    )
    if found["overhead_ms"] > TARGET_MS:
        raise SystemExit(f"above the target of {TARGET_MS:.0f} ms")


if __name__ == "__main__":
    main()
