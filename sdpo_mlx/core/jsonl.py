"""JSON Lines files that grow at their end: events, coaching sessions, cached rollouts, searches.

A kill may leave a torn last line. Readers leave it out, and opening the file for writing repairs it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from sdpo_mlx.core.storage import digest, guarded, json_line, sync, trouble, write_all, write_bytes


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of one line, None if it holds anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def numbered_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield the number and the object of each line, None for a damaged one; blank and torn ones are left out.

    A missing file has no lines. Raises StorageError if the file cannot be read.
    """
    content = guarded(path, path.read_bytes) if path.exists() else b""
    lines = content.splitlines()
    for number, line in enumerate(lines, 1):
        record = parse_line(line)
        torn = record is None and number == len(lines) and not content.endswith(b"\n")
        if line.strip() and not torn:
            yield number, record


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the readable objects of a file in order; damaged lines are skipped. Raises StorageError."""
    return (record for _, record in numbered_lines(path) if record is not None)


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with a SHA-256 of itself, so that a damaged byte is noticed."""
    return {**record, "sha256": digest(json_line(record))}


def unseal(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what `seal` was given, None if the record differs from its hash."""
    content = {name: value for name, value in record.items() if name != "sha256"}
    try:
        return content if record.get("sha256") == digest(json_line(content)) else None
    except (ValueError, RecursionError):
        return None


class JsonlWriter:
    """Append-only writer of one file; opening it repairs a torn last line.

    By default the file has one writer (a run folder's lock sees to that): what is torn is cut off. Of a `shared` file
    nothing is ever cut, since another process may have appended in the meantime; a torn line is ended instead.
    A record survives a kill once it is appended, and a power cut after `sync`. All methods raise StorageError.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self.path, self._shared = path, shared
        self._descriptor = self._open()

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write all records in one piece; if the disk refuses, the file stays as it was."""
        start = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            write_all(self._descriptor, b"".join(map(json_line, records)))
        except OSError as error:
            if not self._shared:
                os.ftruncate(self._descriptor, start)
            raise trouble(error, self.path) from error

    def sync(self) -> None:
        """Wait until the drive holds every record."""
        guarded(self.path, sync, self._descriptor)

    def replace(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace the whole content atomically."""
        self.close()
        try:
            write_bytes(self.path, b"".join(map(json_line, records)))
        finally:
            self._descriptor = self._open()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> int:
        descriptor = guarded(self.path, os.open, self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                content = self.path.read_bytes()
                whole = content.rfind(b"\n") + 1
                if self._shared or parse_line(content[whole:]) is not None:
                    write_all(descriptor, b"\n")
                else:
                    os.ftruncate(descriptor, whole)
        except OSError as error:
            os.close(descriptor)
            raise trouble(error, self.path) from error
        return descriptor
