"""TensorBoard: event files in the run folder's `tensorboard`, written without TensorFlow."""

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


def open_run(location: RunLocation) -> TensorBoard:
    """Start a new event file; its START event makes readers drop later steps of earlier files."""
    writer = EventFileWriter(str(location.folder / "tensorboard"))
    writer.add_event(Event(step=location.last_step + 1, session_log=SessionLog(status=SessionLog.START)))
    return TensorBoard(writer, location)


class TensorBoard:
    """Scalars under the names in the events; settings and warnings as text. Each event is flushed."""

    def __init__(self, writer: Any, location: RunLocation) -> None:
        self._writer = writer
        if location.last_step < 0:
            self._write_text("config", f"```yaml\n{yaml.safe_dump(dict(location.config), sort_keys=False)}```", 0, None)

    def log(self, event: Mapping[str, Any]) -> None:
        """Write all numbers as one record, or a warning as text."""
        step, when = int(event["step"]), event["time"]
        if event["type"] == "warning":
            self._write_text("warning", event["message"], step, when)
            return
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(event).items()]
        self._write(Event(step=step, wall_time=when, summary=Summary(value=values)))

    def close(self, finished: bool) -> None:  # noqa: ARG002 - event files have no end status
        """Close the file."""
        self._writer.close()

    def _write_text(self, tag: str, text: str, step: int, when: float | None) -> None:
        tensor = make_tensor_proto(text, dtype="string")
        value = Summary.Value(tag=tag, tensor=tensor, metadata=create_summary_metadata(tag, ""))
        self._write(Event(step=step, wall_time=when, summary=Summary(value=[value])))

    def _write(self, event: Any) -> None:
        self._writer.add_event(event)
        self._writer.flush()
