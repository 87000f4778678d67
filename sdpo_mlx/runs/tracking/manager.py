"""The trackers of one run together: each event goes to all, and one that fails is left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import StorageError
from sdpo_mlx.core.text import display
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.tracking import registry
from sdpo_mlx.runs.tracking.base import MEASURED, RunLocation, Tracker
from sdpo_mlx.runs.tracking.sent_log import SentLog
from sdpo_mlx.runs.tracking.worker import TrackerError, Worker

OPEN, LOG, CLOSE = 90.0, 30.0, 60.0  # seconds a tracker may take


class TrackerManager:
    """The trackers in `log.sinks`; nothing that they do raises, and what went wrong comes back as a line each."""

    def __init__(self, cfg: Config, folder: RunFolder) -> None:
        self._cfg, self._folder = cfg, folder
        self._waiting = list(dict.fromkeys(cfg.log.sinks))
        self._open: dict[str, tuple[Worker, Tracker]] = {}
        self._told: SentLog | None = None
        self._finished = False

    def tell(self, event: Mapping[str, Any]) -> list[str]:
        """Pass on an event that is in the stream; returns a line for each tracker that failed at it.

        With the first event the trackers open. They then hear all that the stream holds and they haven't heard:
        a tracker that was switched on late, or had failed, has the whole run in the end.
        """
        failures: list[str] = []
        if self._waiting:
            failures += self._start(event)
        self._finished |= event["type"] == "run_finished"
        for name in list(self._open):
            failures += self._tried(name, partial(self._pass_on, name, event))
        self._save()
        return failures

    def close(self) -> list[str]:
        """Close all that are open; a second call does nothing."""
        failures: list[str] = []
        for name, (worker, tracker) in list(self._open.items()):
            failed = self._tried(name, partial(worker.call, partial(tracker.close, self._finished), CLOSE))
            self._save(None if failed else name)
            failures += failed
            worker.leave()
        self._open = {}
        return failures

    def _start(self, event: Mapping[str, Any]) -> list[str]:
        names, self._waiting = self._waiting, []
        fresh = event["type"] == "run_started"
        self._told = SentLog(self._folder.trackers, fresh=fresh)
        return [line for name in names for line in self._tried(name, partial(self._begin, name, self._told))]

    def _begin(self, name: str, told: SentLog) -> None:
        config = self._cfg.model_dump(mode="json")
        place = RunLocation(self._folder.path.resolve(), told.id, config, told.highest(name))
        worker = Worker(name)
        self._open[name] = worker, worker.call(partial(registry.open_tracker, name, place), OPEN)
        for past in read_events(self._folder.events):
            if past.get("type") in MEASURED:
                self._pass_on(name, past)

    def _pass_on(self, name: str, event: Mapping[str, Any]) -> None:
        worker, tracker = self._open[name]
        if event["type"] == "warning":
            worker.call(partial(tracker.log, event), LOG)
        elif event["type"] in MEASURED and self._told is not None and not self._told.knows(name, event):
            worker.call(partial(tracker.log, event), LOG)
            self._told.add(name, event)

    def _tried(self, name: str, work: Callable[[], Any]) -> list[str]:
        try:
            work()
        except (TrackerError, StorageError) as error:
            self._open.pop(name, None)
            reason = " ".join(display(str(error), 300).split())
            return [f"{name} is switched off, the run goes on without it: {reason}"]
        return []

    def _save(self, closed: str | None = None) -> None:
        # Without it a resumed run may say something twice, no more.
        with suppress(StorageError):
            if self._told is not None:
                self._told.save(closed)
