"""Fans events out to all trackers and disables one that fails.

Each tracker has its own thread, so that one that hangs delays the run no longer than its time limit.
"""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import ConfigError, StorageError
from sdpo_mlx.core.text import display
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.tracking.base import MEASURED, RunLocation, Tracker
from sdpo_mlx.runs.tracking.sent_log import SentLog

OPEN, LOG, CLOSE = 90.0, 30.0, 60.0  # time limits in seconds


class TrackerError(Exception):
    """A tracker raised or timed out; the text has the cause."""


def check(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker whose package is missing, without importing any."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # without an origin: a folder of that name, such as wandb leaves
            fix = f"run pip install 'sdpo-mlx[{name}]', or remove it from the setting"
            raise ConfigError(f"{name} is not installed", where="log.sinks", fix=fix)


def open_tracker(name: str, location: RunLocation) -> Tracker:
    """Open a tracker's run; raises whatever its package raises."""
    tracker: Tracker = import_module(f"sdpo_mlx.runs.tracking.{name}").open_run(location)
    return tracker


class Worker:
    """Calls functions one after the other in one daemon thread."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=f"tracker {name}", daemon=True).start()

    def call(self, function: Callable[[], Any], seconds: float) -> Any:
        """Return what `function` returns; raises TrackerError for what it raised, or after `seconds`.

        Its output to stdout is dropped, since stdout may carry a result for another program.
        """
        with redirect_stdout(io.StringIO()):
            self._calls.put(function)
            try:
                result, error = self._results.get(timeout=seconds)
            except queue.Empty:
                raise TrackerError(f"no response within {seconds:g} seconds") from None
        if error is not None:
            raise TrackerError(f"{type(error).__name__}: {error}") from error
        return result

    def stop(self) -> None:
        """End the thread once it is idle."""
        self._calls.put(None)

    def _run(self) -> None:
        while (function := self._calls.get()) is not None:
            try:
                self._results.put((function(), None))
            except BaseException as error:  # SystemExit in a tracker must not end the run either
                self._results.put((None, error))


class TrackerManager:
    """The trackers in `log.sinks`; nothing they do raises, failures are returned as one line each."""

    def __init__(self, cfg: Config, folder: RunFolder) -> None:
        self._cfg, self._folder = cfg, folder
        self._waiting: list[str] = list(dict.fromkeys(cfg.log.sinks))
        self._open: dict[str, tuple[Worker, Tracker]] = {}
        self._sent: SentLog | None = None
        self._finished = False

    def send(self, event: Mapping[str, Any]) -> list[str]:
        """Send an event that is in the stream; return a line for each tracker that failed at it.

        The trackers open with the first event and then receive all earlier events that they have not got: a tracker
        that was added late, or had failed, has the whole run in the end.
        """
        failures: list[str] = []
        if self._waiting:
            names, self._waiting = self._waiting, list[str]()
            self._sent = SentLog(self._folder.trackers, fresh=event["type"] == "run_started")
            for name in names:
                failures += self._attempt(name, partial(self._start, name, self._sent))
        self._finished |= event["type"] == "run_finished"
        for name in list(self._open):
            failures += self._attempt(name, partial(self._send_to, name, event))
        self._save()
        return failures

    def close(self) -> list[str]:
        """Close all open trackers and return failures; a second call does nothing."""
        failures: list[str] = []
        for name, (worker, tracker) in list(self._open.items()):
            failed = self._attempt(name, partial(worker.call, partial(tracker.close, self._finished), CLOSE))
            self._save(None if failed else name)
            failures += failed
            worker.stop()
        self._open = {}
        return failures

    def _start(self, name: str, sent: SentLog) -> None:
        config = self._cfg.model_dump(mode="json")
        location = RunLocation(self._folder.path.resolve(), sent.id, config, sent.last_step(name))
        worker = Worker(name)
        self._open[name] = worker, worker.call(partial(open_tracker, name, location), OPEN)
        for past in read_events(self._folder.events):
            if past.get("type") in MEASURED:
                self._send_to(name, past)

    def _send_to(self, name: str, event: Mapping[str, Any]) -> None:
        worker, tracker = self._open[name]
        if event["type"] == "warning":
            worker.call(partial(tracker.log, event), LOG)
        elif event["type"] in MEASURED and self._sent is not None and not self._sent.contains(name, event):
            worker.call(partial(tracker.log, event), LOG)
            self._sent.add(name, event)

    def _attempt(self, name: str, call: Callable[[], Any]) -> list[str]:
        try:
            call()
        except (TrackerError, StorageError) as error:
            self._open.pop(name, None)
            reason = " ".join(display(str(error), 300).split())
            return [f"tracker {name} is disabled for the rest of this session: {reason}"]
        return []

    def _save(self, closed: str | None = None) -> None:
        # If this fails, a resumed run may send something twice, no more.
        with suppress(StorageError):
            if self._sent is not None:
                self._sent.save(closed)
