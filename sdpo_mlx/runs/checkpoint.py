"""Checkpoints that survive kills, full disks and flipped bits.

A checkpoint is a folder `step-000020`: one safetensors file for each part of the state (student, teacher,
optimizer), `state.json` with the rest of the training state, and `manifest.json` with size and SHA-256 of each.
All of it is written and fsynced under a temporary name, the manifest last, and then renamed once. Not covered: a
drive that ignores fsync, and two processes in one folder (the run's lock prevents that).
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdpo_mlx.core.errors import ConfigError, StorageError
from sdpo_mlx.core.storage import digest, guarded, put, sync_folder, trouble
from sdpo_mlx.models.safetensors_io import read_arrays

Arrays = Mapping[str, npt.NDArray[Any]]
FORMAT = 1
MANIFEST, STATE, SUFFIX = "manifest.json", "state.json", ".safetensors"
SAVING, REPLACED, REMOVING = ".saving-", ".replaced-", ".removing-"
NAME = re.compile(r"step-(\d{6,})")
NAMED = ("model.name ", "task.name ")
_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Loaded:
    """The content of a checkpoint; `warnings` name newer ones that were damaged and skipped."""

    step: int
    state: dict[str, dict[str, npt.NDArray[Any]]]
    meta: dict[str, Any]
    warnings: tuple[str, ...] = ()


def folder_name(step: int) -> str:
    """Return `step-000020` for 20 completed steps."""
    return f"step-{step:06d}"


def steps(root: Path) -> list[int]:
    """Return the steps that have a checkpoint under `root`, oldest first, without verifying them."""
    names = (NAME.fullmatch(path.name) for path in root.iterdir() if path.is_dir()) if root.is_dir() else ()
    return sorted(int(name[1]) for name in names if name)


def save(
    root: Path,
    step: int,
    state: Mapping[str, Arrays],
    meta: Mapping[str, Any],
    *,
    keep: int = 2,
    keep_steps: Collection[int] = (),
) -> Path:
    """Write checkpoint `step`, then prune to the last `keep` and `keep_steps`; return its folder.

    An existing checkpoint of the same step is replaced; checkpoints of later steps are deleted. Raises StorageError
    with the temporary folder removed and every earlier checkpoint unchanged.
    """
    final = root / folder_name(step)
    temporary = root / (SAVING + final.name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        recover(root)
        temporary.mkdir()
        _fill(temporary, step, state, meta)
        sync_folder(temporary)
        _swap(temporary, final)
        sync_folder(root)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise trouble(error, final) from error
        raise
    _prune(root, step, keep, keep_steps)
    return final


def load(root: Path, *, expect: Mapping[str, Any] | None = None, override: str = "") -> Loaded | None:
    """Return the newest checkpoint that verifies, None if there is none at all.

    `expect` maps keys of `meta` (nested ones too) to the values that this run needs. Raises ConfigError naming each
    value that changed, with `override` as the fix (by default: how to resume with the run's own settings), and
    StorageError if all checkpoints are damaged.
    """
    guarded(root, recover, root)
    damage: list[str] = []
    for step in reversed(steps(root)):
        folder = root / folder_name(step)
        try:
            state, meta = _read(folder, step)
        except StorageError as error:
            damage.append(f"checkpoint {folder.name} is damaged and was skipped: {error.what}")
            continue
        found = _changes(json.loads(json.dumps(expect or {})), meta, "")
        changed = [each.removeprefix("config.") for each in found]  # as people write them
        changed.sort(key=lambda each: not each.startswith(NAMED))  # settings that a person wrote before the hashes
        if changed:
            shown = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
            run = shlex.quote(str(root.parent))
            fix = override or f"to resume, leave these out: sdpo train --out {run} --resume. Or start in another --out"
            raise ConfigError(f"this run was started with other settings: {shown}", where=str(folder), fix=fix)
        return Loaded(step, state, meta, tuple(damage))
    if damage:
        raise StorageError(
            f"no checkpoint can be read; {damage[0]}", where=str(root), fix="start again in another --out"
        )
    return None


def load_step(root: Path, step: int) -> Loaded:
    """Return the checkpoint of one step. Raises StorageError if there is none or it is damaged."""
    folder = root / folder_name(step)
    try:
        return Loaded(step, *_read(folder, step))
    except StorageError as error:
        what = f"the checkpoint of step {step} cannot be read: {error.what}"
        raise StorageError(what, where=str(folder), fix="set train.on_decline=stop") from error


def recover(root: Path) -> None:
    """Clean up after a kill: delete incomplete folders, restore a replaced one if its successor is missing.

    Raises OSError if the folder cannot be changed.
    """
    for path in list(root.glob(".*step-*")) if root.is_dir() else []:
        if path.name.startswith(REPLACED):
            final = root / path.name.removeprefix(REPLACED)
            if not final.exists():
                path.rename(final)
                continue
        if path.name.startswith((SAVING, REPLACED, REMOVING)):
            shutil.rmtree(path)


def _fill(folder: Path, step: int, state: Mapping[str, Arrays], meta: Mapping[str, Any]) -> None:
    """Write all files; one part is in memory at a time."""
    from safetensors.numpy import save as serialize

    files: dict[str, dict[str, Any]] = {}

    def add(name: str, content: bytes) -> None:
        put(folder / name, content)
        files[name] = {"size": len(content), "sha256": digest(content)}

    for part, arrays in state.items():
        # safetensors writes the memory of a transposed array unchanged, which is the wrong order.
        add(part + SUFFIX, serialize({name: np.asarray(array, order="C") for name, array in arrays.items()}))
    record = {"format": FORMAT, "step": step, "parts": list(state), "meta": meta}
    add(STATE, json.dumps(record, indent=1).encode())
    put(folder / MANIFEST, _manifest(files))


def _manifest(files: Mapping[str, Mapping[str, Any]]) -> bytes:
    return json.dumps({"format": FORMAT, "files": files}, indent=1).encode()


def _swap(temporary: Path, final: Path) -> None:
    """Rename the new folder; a non-empty folder cannot be replaced by a rename, so the old one is moved first."""
    replaced = final.with_name(REPLACED + final.name)
    had_one = final.exists()
    if had_one:
        final.rename(replaced)
    try:
        temporary.rename(final)
    except OSError:
        if had_one:
            replaced.rename(final)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _prune(root: Path, step: int, keep: int, keep_steps: Collection[int]) -> None:
    """Delete old and later checkpoints; a failure is ignored, since the save itself succeeded."""
    past = [other for other in steps(root) if other <= step]
    keeping = {*past[-max(keep, 1) :], *keep_steps}.intersection(past)
    for other in sorted(set(steps(root)) - keeping):
        folder = root / folder_name(other)
        doomed = folder.with_name(REMOVING + folder.name)
        with suppress(OSError):
            folder.rename(doomed)  # a kill during the removal must not leave half a checkpoint
            shutil.rmtree(doomed)


def _read(folder: Path, step: int) -> tuple[dict[str, dict[str, npt.NDArray[Any]]], dict[str, Any]]:
    """Return verified state and meta; raises StorageError with what is wrong with the folder."""
    try:
        content = _verified(folder)
        record = json.loads(content[STATE])
        if record["step"] != step or record["format"] != FORMAT:
            raise StorageError(f"state.json is of step {record['step']}, format {record['format']}")
        state = {part: read_arrays(content[part + SUFFIX]) for part in record["parts"]}
        return state, record["meta"]
    except StorageError:
        raise
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"{type(error).__name__}: {error}", where=str(folder)) from error


def _verified(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in the manifest; sizes, hashes and the manifest's own bytes are checked."""
    stored = (folder / MANIFEST).read_bytes()
    files = json.loads(stored)["files"]
    content: dict[str, bytes] = {}
    for name, entry in files.items():
        if Path(name).name != name:
            raise StorageError("the manifest names a file outside its folder")
        content[name] = (folder / name).read_bytes()
        if {"size": len(content[name]), "sha256": digest(content[name])} != entry:
            raise StorageError(f"{name} differs from its hash")
    if stored != _manifest(files):
        raise StorageError(f"{MANIFEST} was altered")
    return content


def _changes(expect: Mapping[str, Any], found: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Yield `train.learning_rate was 0.0001, is 0.001` for each difference.

    A setting that the version which saved the checkpoint did not have is none.
    """
    for key, now in expect.items():
        if prefix and key not in found:
            continue
        before = found.get(key)
        if isinstance(now, dict) and isinstance(before, dict):
            yield from _changes(now, before, f"{prefix}{key}.")
        elif now != before:
            was, now_is = (
                json.dumps(v[:12] if isinstance(v, str) and _HASH.fullmatch(v) else v) for v in (before, now)
            )
            yield f"{prefix}{key} was {was}, is {now_is}"
