"""Starts one contained process and reads it with a cap and a clock; every mechanism goes through here."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO, Literal

from sdpo_mlx.sandbox.base import RunResult
from sdpo_mlx.sandbox.bootstrap import STARTED
from sdpo_mlx.sandbox.spawn import Spawned

OUTPUT_CAP = 65_536
# Up to the program's first line, which its own limit does not pay for: Docker Desktop's machine takes 10 s to wake.
START_SECONDS = 30.0
_CHUNK = 65_536
_DYING_SECONDS = 1.0
_WATCH_SECONDS = 0.1
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # by itself, and below `bwrap`
_SPAWNED_WATCH_SECONDS = 0.02  # no kernel limit binds these as surely, and the question needs no process
# Fixed hashing keeps the order of sets equal from run to run; the bootstrap then empties the environment.
# glibc reserves 64 MB of address space for each thread that is busy at once: a program would lose memory to chance.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "MALLOC_ARENA_MAX": "1"}
# `-I` would ignore the two names above; `-P -s` with an environment of our own isolates as well.
INTERPRETER_FLAGS = ("-P", "-s", "-S", "-B")
Cut = Literal["timeout", "output_limit", "signal"]
Process = subprocess.Popen[bytes] | Spawned


@dataclass(frozen=True)
class Limits:
    """What one run may use: seconds of wall clock, MiB of address space, files and processes.

    `total_seconds` is for a run whose programs bring a limit of their own for each test.
    """

    seconds: float = 6.0
    total_seconds: float = 60.0
    memory_mb: int = 512
    file_mb: int = 8
    files: int = 64
    processes: int = 32

    def with_memory(self, memory_mb: int | None) -> Limits:
        """Return these limits with this much address space, if it is given."""
        return self if memory_mb is None else replace(self, memory_mb=memory_mb)

    def arguments(self, seconds: float, uid: int = -1, *, count_processes: bool = True) -> list[str]:
        """Return the bootstrap's arguments; CPU time gets a little more than the wall clock, as a second net."""
        processes = self.processes if count_processes else -1
        sizes = (self.memory_mb << 20, int(seconds) + 2, self.file_mb << 20, self.files, processes)
        return [str(uid), *map(str, sizes)]


@dataclass
class _Watch:
    """The time and resource limits of one run; `start_seconds` None: no bootstrap says when its program starts."""

    seconds: float
    start_seconds: float | None
    over: Callable[[int], bool] | None
    every: float = _WATCH_SECONDS
    asked: float = field(default_factory=time.monotonic)
    started: bool = field(init=False)
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.start_seconds is None
        self.deadline = self.asked + (self.seconds if self.start_seconds is None else self.start_seconds)

    def look_for_start(self, data: bytearray) -> None:
        """Start the program's clock at the bootstrap's mark in stdout, and take away what is not the program's.

        Only the first mark counts, and no program runs before it.
        """
        if not self.started and (found := data.find(STARTED)) >= 0:
            del data[: found + len(STARTED)]
            self.started, self.deadline = True, time.monotonic() + self.seconds

    def pause(self) -> float:
        """Return how long the reader may wait before it looks here again."""
        left = self.deadline - time.monotonic()
        return max(0.0, left if self.over is None else min(left, self.asked + self.every - time.monotonic()))

    def cut(self, process: Process) -> Cut | None:
        """Return what ends the run now, if anything does."""
        now = time.monotonic()
        if now >= self.deadline:
            return "timeout"
        if self.over is not None and now - self.asked >= self.every:
            over = self.over(process.pid)
            self.asked = time.monotonic()  # after the question, so that a slow answer cannot eat the run's time
            return "signal" if over else None
        return None


def last_line(stderr: bytes) -> str:
    """Return the last line that a mechanism wrote, capped: it ends up in a one-line error."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return "".join(c for c in lines[-1] if c.isprintable())[:200] if lines else ""


@cache
def bootstrap() -> str:
    """Return the text of `bootstrap.py`, which runs before any program."""
    return resources.files("sdpo_mlx.sandbox").joinpath("bootstrap.py").read_text("utf-8")


def payload(program: str, stdin: bytes) -> bytes:
    """Return the program and its input as the bootstrap reads them."""
    source = program.encode("utf-8", "replace")
    return len(source).to_bytes(8, "big") + source + stdin


def launch(
    argv: list[str],
    stdin: bytes,
    seconds: float,
    *,
    env: dict[str, str] | None = None,
    cwd: str | None = None,
    pass_fds: tuple[int, ...] = (),
    over: Callable[[int], bool] | None = None,
) -> RunResult:
    """Run `argv` in its own process group until it ends, writes too much or times out; then kill that group.

    With the bootstrap in `argv`, `seconds` count from the program's first line, which must come within
    `START_SECONDS`; without it they count from here. `over(pid)` is called ten times a second; if it returns True,
    the run is killed as well (status `signal`). `pass_fds` reach `argv` beside its three streams.
    """
    start = time.monotonic()
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env or {},
        cwd=cwd,
        pass_fds=pass_fds,
        start_new_session=True,
        bufsize=0,
    ) as process:
        return _named(_attend(process, stdin, start, _Watch(seconds, _start_seconds(argv), over)), argv[0])


def launch_spawned(
    argv: list[str],
    stdin: bytes,
    seconds: float,
    *,
    env: dict[str, str] | None = None,
    spawned: Callable[[int], None] = lambda _: None,
    over: Callable[[int], bool] | None = None,
) -> RunResult:
    """As `launch`, without a fork of this process: `argv[0]` is a path, and the folder stays this process's.

    `spawned(pid)` is called at once, `over(pid)` fifty times a second. A process that used more processor time than
    `seconds` and the bootstrap's margin, whatever signal it ignored, has the status `timeout`.
    """
    start = time.monotonic()
    with Spawned(argv, env or {}) as process:
        spawned(process.pid)
        watch = _Watch(seconds, _start_seconds(argv), over, _SPAWNED_WATCH_SECONDS)
        result = _named(_attend(process, stdin, start, watch), argv[0])
        used = process.usage
    if result.status == "exited" and used is not None and used.ru_utime + used.ru_stime > int(seconds) + 2:
        return replace(result, status="timeout")
    return result


def _start_seconds(argv: list[str]) -> float | None:
    """Return the limit of the start, for a command that says when it is over: one that runs the bootstrap."""
    return START_SECONDS if bootstrap() in argv else None


def _named(result: RunResult, program: str) -> RunResult:
    """Return a run with the reason at the end of its stderr if `program` took too long to start Python."""
    if result.started or result.status != "timeout":
        return result
    reason = f"\n{Path(program).name} did not start Python within {START_SECONDS:g} s\n".encode()
    return replace(result, stderr=result.stderr[: OUTPUT_CAP - len(reason)] + reason)


def _attend(process: Process, stdin: bytes, start: float, watch: _Watch) -> RunResult:
    """Feed and read a process until it ends or is cut, kill its group, and return what it wrote."""
    assert process.stdout is not None
    assert process.stderr is not None
    outputs = {process.stdout: bytearray(), process.stderr: bytearray()}
    try:
        cut = _pump(process, stdin, outputs, watch)
    finally:
        try:  # the whole process group; with a PID namespace everything inside dies with it
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
        code = process.wait()
        _drain(*outputs)
    spent = time.monotonic() - start
    status = cut or ("signal" if code < 0 or code > 128 else "exited")
    # A busy machine may wake this thread after the program's limit of processor time has killed it.
    if cut is None and watch.started and code in _KILLED and spent >= watch.seconds:
        status = "timeout"
    out, err = (bytes(data[:OUTPUT_CAP]) for data in outputs.values())
    return RunResult(status, code, out, err, spent, watch.started)


def _pump(process: Process, stdin: bytes, outputs: dict[IO[bytes], bytearray], watch: _Watch) -> Cut | None:
    """Feed and read all pipes at once until both outputs end; return the limit that ended it, if any."""
    assert process.stdin is not None
    rest = memoryview(stdin)
    with selectors.DefaultSelector() as selector:
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        for pipe, data in outputs.items():
            selector.register(pipe, selectors.EVENT_READ, data)
        open_outputs = len(outputs)
        while open_outputs:
            if (cut := watch.cut(process)) is not None:
                return cut
            for key, _ in selector.select(watch.pause()):
                if key.data is None:
                    rest = _feed(process.stdin, rest)
                    if not rest:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                elif part := os.read(key.fd, _CHUNK):
                    key.data.extend(part)
                    if key.fileobj is process.stdout:
                        watch.look_for_start(key.data)
                    if len(key.data) > OUTPUT_CAP:
                        return "output_limit"
                else:
                    selector.unregister(key.fileobj)
                    open_outputs -= 1
    while process.poll() is None:  # both outputs are closed, the process gets the rest of its time
        if (cut := watch.cut(process)) is not None:
            return cut
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(watch.pause())
    return None


def _drain(*pipes: IO[bytes]) -> None:
    """Wait until no process holds the outputs any more, so that no run leaves one behind.

    The death of `bwrap` reaches what runs inside as a signal, a moment later. What an unconfined program
    left behind on purpose may hold them forever, hence the time limit.
    """
    deadline = time.monotonic() + _DYING_SECONDS
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if not os.read(key.fd, _CHUNK):
                    selector.unregister(key.fileobj)


def _feed(pipe: IO[bytes], rest: memoryview) -> memoryview:
    """Write what fits; nothing is left when the reader has gone."""
    try:
        return rest[os.write(pipe.fileno(), rest[:_CHUNK]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]
