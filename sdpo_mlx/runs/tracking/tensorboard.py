"""TensorBoard: event files in the run folder's `tensorboard`, written by its own writer, without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from sdpo_mlx.runs.tracking.base import RunLocation, numbers


def open_run(place: RunLocation) -> TensorBoard:
    """Go on in the run's folder with a file of its own; readers then forget what earlier ones say of later steps."""
    writer = EventFileWriter(str(place.folder / "tensorboard"))
    writer.add_event(Event(step=place.told + 1, session_log=SessionLog(status=SessionLog.START)))
    return TensorBoard(writer, place)


class TensorBoard:
    """Scalars under the events' names; settings and warnings as text. Each event is on disk at once."""

    def __init__(self, writer: Any, place: RunLocation) -> None:
        self._writer = writer
        if place.told < 0:
            self._say("config", f"```yaml\n{yaml.safe_dump(dict(place.config), sort_keys=False)}```", 0, None)

    def log(self, event: Mapping[str, Any]) -> None:
        """One record of all numbers, or a text."""
        step, when = int(event["step"]), event["time"]
        if event["type"] == "warning":
            self._say("warning", event["message"], step, when)
            return
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(event).items()]
        self._write(Event(step=step, wall_time=when, summary=Summary(value=values)))

    def close(self, finished: bool) -> None:  # noqa: ARG002 - its files know no end
        """Close the file."""
        self._writer.close()

    def _say(self, tag: str, text: str, step: int, when: float | None) -> None:
        tensor = make_tensor_proto(text, dtype="string")
        value = Summary.Value(tag=tag, tensor=tensor, metadata=create_summary_metadata(tag, ""))
        self._write(Event(step=step, wall_time=when, summary=Summary(value=[value])))

    def _write(self, event: Any) -> None:
        self._writer.add_event(event)
        self._writer.flush()
