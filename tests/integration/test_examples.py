"""The examples run as documented, one as a process of its own, and the model learns."""

import io
import os
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from paths import EXAMPLES

pytest.importorskip("mlx.core", reason="the examples train on mlx")


def run(script: str, *arguments: str) -> str:
    """Run one example in this process and return its standard output."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr("sys.argv", [script, *arguments])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return out.getvalue()


def run_as_process(script: str, *arguments: str) -> str:
    """Run one example as people do and return its standard output; its exit code must be 0."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(output: str, label: str) -> list[float]:
    """Return the number after each occurrence of a label."""
    return [float(number) for number in re.findall(rf"{label}\s+([\d.]+)", output)]


def test_minimal_loop_raises_the_held_out_score_within_three_steps() -> None:
    output = run("minimal_loop.py", "--steps", "3", "--held-out", "24")
    (before,), (after,) = figures(output, "before:"), figures(output, "after:")
    assert len(figures(output, "success")) == 3
    assert all(count > 0 for count in figures(output, "learned from"))
    assert 0 < before < 0.35
    assert after > before + 0.15


def test_minimal_loop_changes_nothing_without_steps() -> None:
    output = run_as_process("minimal_loop.py", "--steps", "0", "--held-out", "4")
    assert figures(output, "before:") == figures(output, "after:")


def test_minimal_loop_has_at_most_200_lines() -> None:
    assert len((EXAMPLES / "minimal_loop.py").read_text(encoding="utf-8").splitlines()) <= 200


def test_own_task_is_learned_within_four_steps(tmp_path: Path) -> None:
    rates = figures(run("own_task.py", "--steps", "4", "--out", str(tmp_path / "run")), "success")
    assert len(rates) == 4
    assert max(rates[-2:]) > rates[0] + 0.3
