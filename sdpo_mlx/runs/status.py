"""What a run folder tells from outside, while it is written and after: for tables and for watching."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import LESSONS

FIGURES = ("time", "step", "score", "low", "high", "adapter_step", "loss", "entropy", "lr")
State = Literal["running", "finished", "stopped", "coached", "damaged"]
MOST = 1e18  # no figure of a run is larger: a damaged line, or one that somebody made up


@dataclass(frozen=True)
class RunState:
    """One run at a glance; scores are shares of 1, `time` is that of the last event in epoch seconds.

    In a coached folder steps are lessons, and there are as many as there are.
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
    """The runs below a folder, or the one that it is; latest first. Raises ConfigError where there is none."""
    places = [folder] if (folder / "events.jsonl").is_file() else sorted(folder.glob("*/"))
    found = [state_of(place) for place in places if (place / "events.jsonl").is_file()]
    if not found:
        raise ConfigError("there are no runs here", where=str(folder), fix="name a folder that sdpo train wrote to")
    return sorted(found, key=lambda run: -run.time)


def state_of(path: Path) -> RunState:
    """Read it off the events; a folder whose events tell nothing is `damaged`."""
    try:
        events = [_sound(event) for event in read_events(path / "events.jsonl")]
    except OSError:
        events = []
    config = _first(events, "run_started").get("config") or {}
    steps = [event for event in events if event.get("type") == "step"]
    if not events or not isinstance(config, dict):
        return RunState(path, "damaged")
    finals = {event.get("adapter"): event.get("score") for event in events if event.get("final")}
    end: Mapping[str, Any] = next((event for event in reversed(events) if event.get("type") == "run_finished"), {})
    coached = (path / LESSONS).is_file()
    over: State = "coached" if coached else "finished" if end else "stopped"
    done = _count(steps[-1].get("step")) if steps else 0
    return RunState(
        path=path,
        state="running" if is_running(path) else over,
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
    """Whether a living process holds the folder's lock."""
    lock = path / ".lock"
    try:
        # Asked first, so that a lock is tried for only where somebody may hold it.
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
    """The events of a stream that may still grow; a last line that is not whole yet waits."""

    def __init__(self, path: Path) -> None:
        self.path, self._read = path, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """What came since the last call; all of it again where a resumed run has cut the stream."""
        if self.path.stat().st_size < self._read:
            self._read = 0
        with self.path.open("rb") as stream:
            stream.seek(self._read)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and _is_figure(event.get("step")) and "type" in event:
                yield _sound(event)


def _sound(event: dict[str, Any]) -> dict[str, Any]:
    """The event with None for each figure that is none: a damaged line must not stop whoever watches."""
    return {
        name: None if ("/" in name or name in FIGURES) and not _is_figure(value) else value
        for name, value in event.items()
    }


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) and _is_figure(value) else 0


def _first(events: list[dict[str, Any]], kind: str) -> Mapping[str, Any]:
    return next((event for event in events if event.get("type") == kind), {})


def _at(tree: Mapping[str, Any], section: str, name: str) -> Any:
    inner = tree.get(section)
    return inner.get(name, "?") if isinstance(inner, Mapping) else "?"
