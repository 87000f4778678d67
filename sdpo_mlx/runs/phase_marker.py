"""`phase.json`: what a run was doing when its process ended without a word, so that the next one does less at once.

On a GPU that ends the process when memory or the watchdog's patience runs out, nothing can be caught. So each phase
is noted before it begins and struck out when it ends, by an error too. The file is replaced in one operation but not
flushed to the drive: the end of a process leaves it, at a few microseconds a phase; a power cut or a kernel panic may
lose it, and then the run resumes as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo_mlx.core.storage import guarded, json_line

NAME = "phase.json"


@dataclass(frozen=True)
class Crash:
    """The phase that a process did not survive, after `step` completed steps, and how much it had at once.

    `repeated` is whether the crash before was in the same phase of the same step.
    """

    phase: str
    step: int
    size: int
    repeated: bool


@dataclass
class PhaseMarker:
    """The marker of one run folder; `limits` are the sizes by phase that earlier crashes reduced."""

    folder: Path
    limits: dict[str, int] = field(default_factory=dict)
    crashed: tuple[str, int] | None = None  # phase and step of the last crash

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / NAME

    def read(self) -> Crash | None:
        """Take over what earlier processes noted; return the crash of the last one, None if there was none.

        A file that is no marker counts as none. Raises StorageError if it cannot be read.
        """
        try:
            found = json.loads(guarded(self.path, self.path.read_bytes)) if self.path.exists() else {}
            self.limits = {str(phase): int(size) for phase, size in found.get("limits", {}).items()}
            before = found.get("crashed")
            self.crashed = (str(before["phase"]), int(before["step"])) if before else None
            if not found.get("phase"):
                return None
            phase, step, size = str(found["phase"]), int(found["step"]), int(found["size"])
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        return Crash(phase, step, size, repeated=self.crashed == (phase, step))

    def note(self, crash: Crash, size: int | None) -> None:
        """Keep a crash in mind, and the size that its phase has from now on.

        None after a repeated one, when the run stops: the next start tries again as it is.
        """
        if size is not None:
            self.limits[crash.phase] = size
        self.crashed = None if size is None else (crash.phase, crash.step)
        self.clear()

    @contextmanager
    def during(self, phase: str, step: int, size: int) -> Iterator[None]:
        """Note the phase while the block runs."""
        self._write({"phase": phase, "step": step, "size": size})
        try:
            yield
        finally:
            self.clear()

    def clear(self) -> None:
        """Strike out the phase; the file goes unless it has limits to keep."""
        if self.limits:
            self._write({"phase": None})
        else:
            self.remove()

    def remove(self) -> None:
        """Remove the file, at the end of a run."""
        guarded(self.path, self.path.unlink, missing_ok=True)

    def unless(self, interrupted: Callable[[], bool]) -> Callable[[], bool]:
        """Return the same question, which strikes out the phase when the answer is yes: a second Ctrl-C is no crash."""

        def ask() -> bool:
            asked = interrupted()
            if asked:
                self.clear()
            return asked

        return ask

    def _write(self, phase: Mapping[str, Any]) -> None:
        crashed = dict(zip(("phase", "step"), self.crashed, strict=True)) if self.crashed else None
        part = self.path.with_name(f".{NAME}.part")
        guarded(part, part.write_bytes, json_line({**phase, "limits": self.limits, "crashed": crashed}))
        guarded(self.path, part.replace, self.path)
