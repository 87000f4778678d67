"""The folder of one run on a real disk: private, capped, and removed without ever following a link."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "sdpo-run-"
BYTES, ENTRIES, DEPTH = 8 << 20, 4_096, 32  # as the work folder of bubblewrap; a folder of the disk has no such limit
FREE_BYTES = 256 << 20  # a disk with less left stops every run that writes
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GROUP = "group"


@contextmanager
def work_folder() -> Iterator[Path]:
    """Yield a new folder inside a private one, whose other names a program cannot reach; removed at the end."""
    outer = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")).resolve()
    try:
        (outer / "work").mkdir(mode=0o700)
        yield outer / "work"
    finally:
        remove(outer)


def record(work: Path, group: int) -> None:
    """Note which process group writes into a folder, for the start after a killed trainer."""
    (work.parent / _GROUP).write_text(str(group), encoding="ascii")


def left_behind() -> Iterator[tuple[Path, int]]:
    """Yield folders of this user whose trainer has ended, with the recorded process group (0: none)."""
    with contextlib.suppress(OSError):
        for outer in sorted(Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*")):
            owner = outer.name.removeprefix(PREFIX).partition("-")[0]
            info = outer.lstat()
            if not owner.isdigit() or not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
                continue
            if not alive(int(owner)):
                yield outer, _group(outer)


def over(work: Path, most: int = BYTES, entries: int = ENTRIES) -> bool:
    """Return whether a folder holds more than `most` bytes or `entries` names, or cannot be measured.

    A tree deeper than `DEPTH` counts as too much, and so does a folder that its owner made unreadable: a program
    could write there unseen.
    """
    try:
        root = os.open(work, _FOLDER)
    except OSError:
        return True
    try:
        space = os.fstatvfs(root)
        if space.f_bavail * space.f_frsize < FREE_BYTES and any(True for _ in os.scandir(root)):
            return True
        return _add(root, [most, entries], DEPTH)
    finally:
        os.close(root)


def _add(folder: int, left: list[int], depth: int) -> bool:
    """Take what a folder holds from the bytes and names left; True as soon as one is used up."""
    with os.scandir(folder) as found:
        for each in found:
            try:
                info = each.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            left[0] -= info.st_blocks * 512
            left[1] -= 1
            if min(left) < 0:
                return True
            if stat.S_ISDIR(info.st_mode) and _add_below(folder, each.name, left, depth - 1):
                return True
    return False


def _add_below(folder: int, name: str, left: list[int], depth: int) -> bool:
    if depth == 0:
        return True
    try:
        inner = os.open(name, _FOLDER, dir_fd=folder)
    except OSError as error:  # renamed or replaced by a link a moment ago, or else closed to us
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    try:
        return _add(inner, left, depth)
    finally:
        os.close(inner)


def remove(folder: Path) -> bool:
    """Remove a folder whose programs have all ended, without following a link; never raises; True if it is gone.

    Folders are moved up to the top before they are emptied, so that neither depth nor open files are a limit.
    """
    try:
        root = os.open(folder, _FOLDER)
    except OSError:
        return not os.path.lexists(folder)
    try:
        waiting = _empty(root, root, str(folder))
        while waiting:
            name = waiting.pop()
            with contextlib.suppress(OSError):
                inner = os.open(name, _FOLDER, dir_fd=root)
                try:
                    waiting += _empty(root, inner, f"{folder}/{name}")
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=root)
    finally:
        os.close(root)
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not os.path.lexists(folder)


def _empty(root: int, folder: int, path: str) -> list[str]:
    """Unlink all but folders, move folders to the top; return their names there."""
    moved: list[str] = []
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            _unlock(folder, name, f"{path}/{name}")
            if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                new = secrets.token_hex(16)
                os.rename(name, new, src_dir_fd=folder, dst_dir_fd=root)
                moved.append(new)
            else:
                os.unlink(name, dir_fd=folder)
    return moved


def _unlock(folder: int, name: str, path: str) -> None:
    """Take flags away that forbid removal, and give a folder back to its owner; links are left as they are."""
    if (unflag := getattr(os, "lchflags", None)) is not None:  # macOS
        unflag(path, 0)
    if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
        os.chmod(name, 0o700, dir_fd=folder, follow_symlinks=os.chmod not in os.supports_follow_symlinks)


def alive(pid: int) -> bool:
    """Return whether a process of this number exists, of any user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _group(outer: Path) -> int:
    try:
        text = (outer / _GROUP).read_text(encoding="ascii")
    except (OSError, ValueError):
        return 0
    return int(text) if text.isdigit() else 0
