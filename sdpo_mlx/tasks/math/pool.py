"""A few warm processes that compare answers: one starts with the first question, more while one is busy for long."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdpo_mlx.core.errors import ConfigError

SECONDS = 30.0  # wall-clock time for one question; the worker's own limit of CPU time is shorter
_STARTING = 120.0  # imports of sympy on a busy machine
_PATIENCE = 0.2  # seconds to wait for a busy worker before another is started
_REMEMBERED = 4_096
TOO_LONG = "It took too long to compare: write it in its simplest form."


@dataclass(frozen=True)
class Compared:
    """Whether an answer is right; if not, what is wrong with its form, blank if nothing is."""

    equal: bool
    form: str = ""


class Pool:
    """Asks workers; thread-safe. A worker that is too slow or breaks is ended, and its answer is no."""

    def __init__(self, most: int = 0, seconds: float = SECONDS) -> None:
        """`most` workers, 0 for half of the cores but two to four; `seconds`: wall-clock time for one question."""
        self._most = most or min(4, max(2, (os.cpu_count() or 2) // 2))
        self._seconds = seconds
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._idle: list[subprocess.Popen[bytes]] = []
        self._all: set[subprocess.Popen[bytes]] = set()
        self._starting = False
        self._known: OrderedDict[tuple[str, str], Compared] = OrderedDict()
        atexit.register(self.close)

    def compare(self, right: str, given: str) -> Compared:
        """Return the worker's verdict. Raises ConfigError if no worker can be started."""
        key = (right, given)
        with self._changed:
            if key in self._known:
                return self._known[key]
        worker = self._taken()
        try:
            line = _answer(worker, json.dumps({"right": right, "given": given}).encode() + b"\n", self._seconds)
        except BaseException:
            self._end(worker)
            raise
        if line is None:
            self._end(worker)
            compared = Compared(False, TOO_LONG)
        else:
            self._give_back(worker)
            said = json.loads(line)
            compared = Compared(said["equal"], said["form"] if said["form"] is not None else TOO_LONG)
        with self._changed:
            self._known[key] = compared
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return compared

    def close(self) -> None:
        """End all workers; the next question starts another."""
        if os.getpid() != self._process:
            return  # a fork has no workers of its own
        with self._changed:
            workers, self._all, self._idle = self._all, set(), []
        for worker in workers:
            _kill(worker)

    def _taken(self) -> subprocess.Popen[bytes]:
        with self._changed:
            while True:
                if self._idle:
                    worker = self._idle.pop()
                    if worker.poll() is None:
                        return worker
                    self._all.discard(worker)
                    continue
                if not self._all and not self._starting:
                    break
                waited = self._changed.wait_for(lambda: self._idle or not (self._all or self._starting), _PATIENCE)
                if not waited and not self._starting and len(self._all) < self._most:
                    break
            self._starting = True
        try:
            worker = _start()
        finally:
            with self._changed:
                self._starting = False
                self._changed.notify_all()
        with self._changed:
            self._all.add(worker)
        return worker

    def _give_back(self, worker: subprocess.Popen[bytes]) -> None:
        with self._changed:
            if worker in self._all:
                self._idle.append(worker)
                self._changed.notify_all()
                return
        _kill(worker)

    def _end(self, worker: subprocess.Popen[bytes]) -> None:
        with self._changed:
            self._all.discard(worker)
            self._changed.notify_all()
        _kill(worker)


def shared() -> Pool:
    """Return the pool of this process; a fork gets its own."""
    with _LOCK:
        return _of_process(os.getpid())


@lru_cache(1)
def _of_process(_number: int) -> Pool:
    return Pool()


_LOCK = threading.Lock()


def _start() -> subprocess.Popen[bytes]:
    worker = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).with_name("worker.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath},
        start_new_session=True,
    )
    if _line(worker, _STARTING) is None:
        _kill(worker)
        fix = "install math-verify again: pip install 'math-verify[antlr4_13_2]>=0.8,<1'"
        raise ConfigError("the process that compares mathematical answers could not be started", fix=fix)
    return worker


def _answer(worker: subprocess.Popen[bytes], question: bytes, seconds: float) -> bytes | None:
    assert worker.stdin is not None
    try:
        worker.stdin.write(question)
        worker.stdin.flush()
    except OSError:
        return None
    return _line(worker, seconds)


def _line(worker: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """Return the next line of the worker; None when it ended or the time is over."""
    assert worker.stdout is not None
    end, got = time.monotonic() + seconds, b""
    while not got.endswith(b"\n"):
        left = end - time.monotonic()
        if left <= 0 or not select.select([worker.stdout], [], [], left)[0]:
            return None
        piece = os.read(worker.stdout.fileno(), 4_096)
        if not piece:
            return None
        got += piece
    return got


def _kill(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was not sent
                pipe.close()
