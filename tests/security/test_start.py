"""The program's clock starts at the bootstrap's mark, which no program can write, delay or take away."""

from __future__ import annotations

import ast
import inspect
import shutil
import sys
import time

import pytest

from sdpo_mlx.sandbox import bootstrap as bootstrap_module
from sdpo_mlx.sandbox import launch as launch_module
from sdpo_mlx.sandbox.base import RunResult, Sandbox
from sdpo_mlx.sandbox.bootstrap import STARTED
from sdpo_mlx.sandbox.bubblewrap import BubblewrapSandbox
from sdpo_mlx.sandbox.launch import (
    INTERPRETER_FLAGS,
    OUTPUT_CAP,
    Limits,
    bootstrap,
    launch,
    launch_spawned,
    payload,
)
from sdpo_mlx.sandbox.probe import ending
from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox

BWRAP = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing: apt install bubblewrap")


@pytest.fixture(scope="module", params=["unconfined", pytest.param("bubblewrap", marks=BWRAP)])
def box(request: pytest.FixtureRequest) -> Sandbox:
    limits = Limits(seconds=2.0)
    return UnconfinedSandbox(limits) if request.param == "unconfined" else BubblewrapSandbox(limits)


# What a program does to the mark, and what of its output is left.
HOSTILE = {
    "writes the mark": (f"import os\nos.write(1, {STARTED!r} * 2)", STARTED * 2),
    "writes half of it": (f"import os\nos.write(1, {STARTED[:4]!r})", STARTED[:4]),
    "writes the mark to both": (f"import os\nos.write(2, {STARTED!r}); os.write(1, b'x')", b"x"),
    "writes nothing": ("", b""),
    "replaces the channel": ("import os\nos.dup2(2, 1); os.write(1, b'x')", b""),
    "closes the channel": ("import os\nos.close(1)", b""),
    "dies at once": ("import os\nos._exit(3)", b""),
    "kills itself": ("import os\nos.kill(os.getpid(), 9)", b""),
    "cannot be compiled": ("def (", b""),
    "forks": ("import os\nprint(os.fork() > 0 and os.wait()[1], flush=True); os._exit(0)", None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_program_cannot_change_that_it_started(box: Sandbox, name: str) -> None:
    program, left = HOSTILE[name]
    result = box.run(program)
    assert result.started
    assert left is None or result.stdout == left
    assert not result.stdout.startswith(STARTED) or name == "writes the mark"


@pytest.mark.parametrize("mark", ["", f"import os\nos.write(1, {STARTED!r})\n"])
def test_another_mark_gives_no_more_time(box: Sandbox, mark: str) -> None:
    program = f"{mark}import time\nwhile True: time.sleep(0.1); print({STARTED.decode()!r}, flush=True)"
    result = box.run(program, seconds=0.5)
    assert (result.status, result.started) == ("timeout", True)


def test_mark_costs_a_program_none_of_its_output(box: Sandbox) -> None:
    whole = box.run(f"import os\nfor _ in range(16): os.write(1, b'x' * {OUTPUT_CAP // 16})")
    assert (whole.status, len(whole.stdout)) == ("exited", OUTPUT_CAP)
    assert box.run(f"import os\nfor _ in range(17): os.write(1, b'x' * {OUTPUT_CAP // 16})").status == "output_limit"


@pytest.mark.parametrize(("late", "seconds", "status"), [(0.0, 60.0, "signal"), (1.5, 1.0, "timeout")])
def test_program_killed_after_its_time_is_a_timeout(late: float, seconds: float, status: str) -> None:
    def answer_late(_: int) -> bool:  # as on a busy machine, where the processor's limit kills a program first
        time.sleep(late)
        return False

    argv = [sys.executable, *INTERPRETER_FLAGS, "-c", bootstrap(), *["-1"] * 6]
    program = "import os, time\ntime.sleep(0.4)\nos.kill(os.getpid(), 9)"
    result = launch(argv, payload(program, b""), seconds, over=answer_late)
    assert (result.status, result.code) == (status, -9)


def started_by(before: str, *, spawned: bool = False) -> RunResult:
    """Run a program by a mechanism that does this first, in Python."""
    argv = [sys.executable, "-S", "-c", f"import os, sys, time\n{before}\nos.execv(sys.argv[1], sys.argv[1:])"]
    argv += [sys.executable, *INTERPRETER_FLAGS, "-c", bootstrap(), *["-1"] * 6]
    return (launch_spawned if spawned else launch)(argv, payload("print('ran')", b""), 5.0)


@pytest.mark.parametrize("spawned", [True, False])
@pytest.mark.parametrize(
    ("before", "status", "said"),
    [
        ("time.sleep(60)", "timeout", "did not start Python within 0.5 s, timeout"),
        ("os.close(1); os.close(2); time.sleep(60)", "timeout", "did not start Python within 0.5 s, timeout"),
        ("os.write(2, b'no engine\\n'); os._exit(71)", "exited", "no engine, code 71"),
        ("os.abort()", "signal", "it ended with SIGABRT"),
        ("while True: os.write(1, b'x' * 4096)", "output_limit", "it ended with output_limit"),
    ],
)
def test_start_that_fails_is_told_from_a_program_that_does(
    monkeypatch: pytest.MonkeyPatch, before: str, status: str, said: str, spawned: bool
) -> None:
    monkeypatch.setattr(launch_module, "START_SECONDS", 0.5)
    result = started_by(before, spawned=spawned)
    assert (result.status, result.started) == (status, False)
    assert ending(result).endswith(said)


def test_words_of_the_mechanism_before_the_mark_are_not_the_programs() -> None:
    result = started_by("os.write(1, b'Emulate Docker CLI\\n')")
    assert (result.stdout, result.started) == (b"ran\n", True)


def test_command_without_the_bootstrap_is_timed_as_a_whole() -> None:
    result = launch([sys.executable, "-S", "-c", "import time; time.sleep(60)"], b"", 0.3)
    assert (result.status, result.started) == ("timeout", True)
    assert result.stderr == b""


def test_mark_is_the_last_act_before_the_program() -> None:
    body = ast.parse(inspect.getsource(bootstrap_module.main)).body[0]
    assert isinstance(body, ast.FunctionDef)
    assert [ast.unparse(each).partition("(")[0] for each in body.body[-2:]] == ["os.write", "exec"]
