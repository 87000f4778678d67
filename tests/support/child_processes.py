"""Child processes that need not import everything again.

A server process of `multiprocessing` imports the packages once and forks for each child. A child is a real process
with its own pid, signals, environment and working directory: killing it kills a real run at a real moment.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from waiting import HANG_SECONDS, wait_until

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
# Imported once by the server. None of them may evaluate an array: mlx starts a thread then, which a fork would lose.
PRELOADED = ["sdpo_mlx.backends.mlx.policy", "sdpo_mlx.trainer", "sdpo_mlx.models.chat_template", "sdpo_cli.main"]
PRELOADED += ["sdpo_cli.commands.train", "mlx_lm.utils", "mlx_lm.tuner.utils", "mlx_lm.models.qwen3", "transformers"]


class Child:
    """A running function with the interface of `subprocess.Popen` that tests use."""

    def __init__(
        self, function: Callable[..., Any], arguments: Sequence[Any], environment: Mapping[str, str], folder: Path
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        before = dict(os.environ)
        os.environ.update({name: ONE_THREAD[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")})
        try:
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ.update(before)
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115  they live as long as the child
        streams = [Connection(os.dup(file.fileno())) for file in self._files]
        self._process = context.Process(
            target=_call, args=(function, tuple(arguments), dict(environment), str(folder), streams)
        )
        self._process.start()
        for stream in streams:
            stream.close()

    @property
    def pid(self) -> int | None:
        """The process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, minus the signal if one ended it, None while it runs."""
        return self._process.exitcode

    poll = property(lambda self: lambda: self.returncode)

    def output(self) -> tuple[str, str]:
        """What it has written to stdout and stderr so far."""
        # pread: the children share the files' offset, which must stay at the end.
        contents = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0) for file in self._files]
        return contents[0].decode(errors="replace"), contents[1].decode(errors="replace")

    def wait_for_line(self, line: str) -> None:
        """Wait until it has written this line to stdout; fail if it ends before."""
        wait_until(lambda: f"{line}\n" in self.output()[0] or self.returncode is not None, f"line {line!r}")
        assert f"{line}\n" in self.output()[0], self.output()

    def send_signal(self, number: int) -> None:
        """Send a signal if it is still running."""
        if self.returncode is None and self.pid is not None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self) -> tuple[str, str]:
        """Wait for its end; return stdout and stderr."""
        self._process.join(HANG_SECONDS)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"still running after {HANG_SECONDS} s: {self.output()}")
        return self.output()


def sdpo_child(words: Sequence[str], folder: Path, environment: Mapping[str, str] = ONE_THREAD) -> Child:
    """Start `sdpo` with these words in `folder`."""
    return Child(_sdpo, words, environment, folder)


def _sdpo(*words: str) -> None:
    from sdpo_cli.main import main

    sys.argv = ["sdpo", *words]
    sys.exit(main())


def _call(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    folder: str,
    streams: list[Connection],
) -> None:
    """Run in the child: take over streams, environment, folder and signals as a new process has them."""
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.fileno(), number)
        stream.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(function(*arguments))
