"""Asking math-verify, where it is installed, in a process that can be ended: sympy may run for ever."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

SECONDS = 5.0
_STARTING = 120.0  # imports of sympy on a busy machine
_LONGEST = 300
_REMEMBERED = 4_096


def installed() -> bool:
    """Return whether the extra `math` is installed."""
    return find_spec("math_verify") is not None


class Symbolic:
    """One worker process, started when first asked; thread-safe, one question at a time."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """`seconds`: wall-clock time for one question, after which the worker is ended and the answer is no."""
        self._seconds = seconds
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None
        self._known: OrderedDict[tuple[str, str], bool] = OrderedDict()

    def equal(self, right: str, given: str) -> bool:
        """Return math-verify's result; False also for what is too long, ends in an error or takes too long.

        Raises RuntimeError if the worker cannot be started.
        """
        if len(right) > _LONGEST or len(given) > _LONGEST:
            return False
        with self._lock:
            key = (right, given)
            if key not in self._known:
                self._known[key] = self._ask(right, given)
                while len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
            return self._known[key]

    def close(self) -> None:
        """End the worker; the next question starts another."""
        worker, self._worker = self._worker, None
        if worker is not None:
            _end(worker)

    def _ask(self, right: str, given: str) -> bool:
        worker = self._started()
        question = json.dumps({"right": right, "given": given}).encode() + b"\n"
        try:
            assert worker.stdin is not None
            worker.stdin.write(question)
            worker.stdin.flush()
        except OSError:
            self.close()
            return False
        line = _line(worker, self._seconds)
        if line is None:
            self.close()
            return False
        return json.loads(line).get("equal") is True

    def _started(self) -> subprocess.Popen[bytes]:
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        self.close()
        script = Path(__file__).with_name("verify_worker.py")
        worker = subprocess.Popen(
            [sys.executable, "-I", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath},
            start_new_session=True,
        )
        weakref.finalize(self, _end, worker)
        if _line(worker, _STARTING) is None:
            _end(worker)
            raise RuntimeError("the process for math-verify could not be started")
        self._worker = worker
        return worker


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


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            pipe.close()
