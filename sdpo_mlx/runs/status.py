"""The status of run folders, for `sdpo runs` and `sdpo watch`; also while another process writes them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.jsonl import parse_line
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import LESSONS

NUMERIC = ("time", "step", "score", "low", "high", "adapter_step", "loss", "entropy", "lr")
State = Literal["running", "finished", "stopped", "coached", "damaged"]
MAX_NUMBER = 1e18  # larger numbers come from damaged or forged lines


@dataclass(frozen=True)
class RunState:
    """The status of one run; scores are shares of 1, `time` is that of the last event in epoch seconds.

    In a coached folder `step` and `steps` both count lessons.
    """

    path: Path
    state: State
    model: str = "?"
    task: str = "?"
    step: int = 0
    steps: int = 0
    generations: int = 0
    before: float | None = None
    after: float | None = None
    difference: tuple[float | None, float | None, float | None] = (None, None, None)  # mean, low, high
    time: float = 0.0


def runs_in(folder: Path) -> list[RunState]:
    """Return the runs in a folder, or the run that it is, latest first. Raises ConfigError if there is none."""
    places = [folder] if (folder / "events.jsonl").is_file() else sorted(folder.glob("*/"))
    found = [state_of(place) for place in places if (place / "events.jsonl").is_file()]
    if not found:
        raise ConfigError("there are no runs here", where=str(folder), fix="name a folder that sdpo train wrote to")
    return sorted(found, key=lambda run: -run.time)


def state_of(path: Path) -> RunState:
    """Read the status from the events; a folder without readable events is `damaged`."""
    try:
        events = [_sanitized(event) for event in read_events(path / "events.jsonl")]
    except OSError:
        events = []
    config = next((event.get("config") for event in events if event.get("type") == "run_started"), None) or {}
    steps = [event for event in events if event.get("type") == "step"]
    if not events or not isinstance(config, dict):
        return RunState(path, "damaged")
    finals = {event.get("adapter"): event.get("score") for event in events if event.get("final")}
    end: Mapping[str, Any] = next((event for event in reversed(events) if event.get("type") == "run_finished"), {})
    coached = (path / LESSONS).is_file()
    ended: State = "coached" if coached else "finished" if end else "stopped"
    done = _count(steps[-1].get("step")) if steps else 0
    return RunState(
        path=path,
        state="running" if is_running(path) else ended,
        model=str(_at(config, "model", "name")),
        task=str(_at(config, "task", "name")),
        step=done,
        steps=done if coached else _count(_at(config, "train", "steps")),
        generations=_count(steps[-1].get("generations/total")) if steps else 0,
        before=finals.get("none"),
        after=finals.get("best"),
        difference=(end.get("difference"), end.get("difference/low"), end.get("difference/high")),
        time=float(events[-1].get("time") or 0.0),
    )


def is_running(path: Path) -> bool:
    """Return whether a living process holds the folder's lock."""
    lock = path / ".lock"
    try:
        # Checked first, so that the lock is only tried if a process may hold it.
        os.kill(int(lock.read_text() or 0), 0)
        descriptor = os.open(lock, os.O_RDONLY)
    except (OSError, ValueError, OverflowError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class EventFollower:
    """Reads the events of a growing stream; an incomplete last line is left for later."""

    def __init__(self, path: Path) -> None:
        self.path, self._read = path, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the events since the last call, all of them if a resumed run has truncated the stream."""
        if self.path.stat().st_size < self._read:
            self._read = 0
        with self.path.open("rb") as stream:
            stream.seek(self._read)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            event = parse_line(line)
            if event is not None and _is_number(event.get("step")) and "type" in event:
                yield _sanitized(event)


def _sanitized(event: dict[str, Any]) -> dict[str, Any]:
    """Replace invalid numbers by None, so that a damaged line does not stop `sdpo watch`."""
    return {
        name: None if ("/" in name or name in NUMERIC) and not _is_number(value) else value
        for name, value in event.items()
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) and _is_number(value) else 0


def _at(tree: Mapping[str, Any], section: str, name: str) -> Any:
    inner = tree.get(section)
    return inner.get(name, "?") if isinstance(inner, Mapping) else "?"
