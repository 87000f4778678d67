"""The event stream `events.jsonl`, and the numbers of its step events.

One JSON object a line. `step` counts completed steps, as the checkpoints do. An event of step k must be
emitted before checkpoint k is saved (the `checkpoint` event too): then `rewind(k)` leaves exactly what an
uninterrupted run has at that point, wherever the kill fell.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sdpo_mlx.core.storage import guarded, json_line, plain, sync, trouble, write_all, write_bytes


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a stream in order; lines that are no JSON object (a torn one) are passed over.

    A missing file has none. Raises StorageError where the file cannot be read.
    """
    for line in guarded(path, path.read_bytes).splitlines() if path.exists() else ():
        event = _parse(line)
        if event is not None:
            yield event


class EventLog:
    """Append-only writer of one event stream; opening it mends a torn last line.

    Raises StorageError where the disk refuses; the file then ends with the last whole event.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._descriptor = self._open()

    def emit(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Append one event (`type` and `step` are needed) and return it as written, `time` in epoch seconds.

        Non-finite numbers become null. It survives a kill at once and a power cut after `sync`.
        """
        rest = {name: value for name, value in event.items() if name not in ("type", "time", "step")}
        head = {"type": event["type"], "time": round(self._clock(), 3), "step": int(event["step"])}
        record: dict[str, Any] = plain({**head, **rest})
        start = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            write_all(self._descriptor, json_line(record))
        except OSError as error:
            os.ftruncate(self._descriptor, start)
            raise trouble(error, self.path) from error
        return record

    def sync(self) -> None:
        """Wait until the drive holds every event; called before a checkpoint."""
        guarded(self.path, sync, self._descriptor)

    def rewind(self, step: int, also: Callable[[Mapping[str, Any]], bool] = lambda _: False) -> None:
        """Drop what a run resumed after `step` completed steps will say again, atomically.

        That is every event of a later step, `run_finished`, unreadable lines and what `also` picks; `run_started`
        stays.
        """
        kept = [
            event
            for event in read_events(self.path)
            if event.get("type") == "run_started"
            or (event.get("type") != "run_finished" and _step(event) <= step and not also(event))
        ]
        self.close()
        try:
            write_bytes(self.path, b"".join(map(json_line, kept)))
        finally:
            self._descriptor = self._open()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> int:
        descriptor = guarded(self.path, os.open, self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _mend(descriptor, self.path)
        except OSError as error:
            os.close(descriptor)
            raise trouble(error, self.path) from error
        return descriptor


def _step(event: Mapping[str, Any]) -> int:
    step = event.get("step")
    return step if isinstance(step, int) else 0


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _mend(descriptor: int, path: Path) -> None:
    """Finish a last line that lacks only its line feed, cut one that is torn."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return
    if _parse(content[whole:]) is None:
        os.ftruncate(descriptor, whole)
    else:
        write_all(descriptor, b"\n")
