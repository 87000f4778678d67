"""The kernels that MLX compiles on a CPU, kept for other test processes and sessions.

MLX compiles into `mlx` in the temporary folder, which every test process has of its own, for half a second each. It
writes a library in place, so processes that share one folder would load unfinished ones: complete ones are copied.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

LIBRARIES = "*/cpu/lib*.so"  # the first folder is MLX's version
MAPS = Path("/proc/self/maps")


class Kernels:
    """The kept kernels in a folder, and this process's own in its temporary folder."""

    def __init__(self, kept: Path) -> None:
        self.kept, self.own = kept, Path(tempfile.gettempdir(), "mlx")
        self.seen: tuple[int, ...] = ()
        self.own.mkdir(exist_ok=True)

    def exchange(self) -> None:
        """Copy what this process lacks, keep what it has compiled; almost free where nothing is new."""
        folders = [folder for root in (self.kept, self.own) for folder in root.glob("*/cpu")]
        if (times := tuple(folder.stat().st_mtime_ns for folder in folders)) == self.seen:
            return
        self.seen = times
        for library in self.kept.glob(LIBRARIES):
            copy(library, self.own / library.relative_to(self.kept))
        for library in loaded(self.own):
            copy(library, self.kept / library.relative_to(self.own))


def loaded(folder: Path) -> set[Path]:
    """Return the libraries in `folder` that this process has loaded: those are complete, whoever was killed."""
    paths = (line.split(maxsplit=5)[-1] for line in MAPS.read_text().splitlines()) if MAPS.exists() else ()
    return {Path(path) for path in paths if path.startswith(str(folder)) and path.endswith(".so")}


def copy(library: Path, target: Path) -> None:
    """Copy a library unless `target` is there; nobody ever sees a part of it."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{os.getpid()}.part")
    shutil.copyfile(library, part)
    part.replace(target)
