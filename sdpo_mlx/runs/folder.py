"""The layout of a run folder, and its lock that admits one process at a time."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sdpo_mlx.config import Config
from sdpo_mlx.config.resolve import dump_yaml
from sdpo_mlx.core.errors import StorageError
from sdpo_mlx.core.storage import (
    digest,
    guarded,
    json_line,
    plain,
    sync_folder,
    trouble,
    write_all,
    write_bytes,
    write_text,
)
from sdpo_mlx.models.adapter_folder import check_layout
from sdpo_mlx.models.safetensors_io import read_arrays

LESSONS = "coaching.jsonl"  # exists only in the folder of a coaching session
ROLLOUTS = re.compile(r"(?:step|eval)-(\d+)\.jsonl\.gz")
RolloutKind = Literal["step", "eval"]  # of training, and of held-out problems
KINDS: tuple[RolloutKind, ...] = ("step", "eval")


class RunFolder:
    """One run's files: `RunFolder(path)` to read, `RunFolder.open(path)` to write under the lock.

    Every write is atomic and durable, and raises StorageError with the old file as it was.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.events = self.path / "events.jsonl"
        self.forgetting = self.path / "forgetting.json"  # the base model's reference (`evaluation/forgetting.py`)
        self.trackers = self.path / "trackers.json"  # what was sent to trackers (`tracking/sent_log.py`)
        self.checkpoints = self.path / "checkpoints"  # for `checkpoint.save` and `checkpoint.load`
        self.rollouts = self.path / "rollouts"  # one file per step, and one per evaluation
        self._lock: int | None = None

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Create the folder if needed and take its lock; `close` or a `with` block releases it.

        Raises StorageError with the process id if another process holds it.
        """
        folder = cls(path)
        for each in (folder.path, folder.rollouts, folder.checkpoints):
            guarded(each, each.mkdir, parents=True, exist_ok=True)
        path = folder.path / ".lock"
        descriptor = guarded(path, os.open, path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released however the process ends
            os.ftruncate(descriptor, 0)
            write_all(descriptor, str(os.getpid()).encode())
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", errors="replace") or "unknown"
            os.close(descriptor)
            what = f"another process (pid {holder}) is writing to this run"
            fix = "wait for it, stop it, or choose another --out"
            raise StorageError(what, where=str(folder.path), fix=fix) from error
        except OSError as error:
            os.close(descriptor)
            raise trouble(error, path) from error
        folder._lock = descriptor
        return folder

    def close(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove_if_unused(self) -> None:
        """Remove a folder without events, and its parent `runs` if that is empty then."""
        if self.events.exists():
            return
        (self.path / ".lock").unlink(missing_ok=True)
        parents = [self.path.parent] if self.path.parent.name == "runs" else []
        for folder in (self.rollouts, self.checkpoints, self.path, *parents):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def save_adapter(self, arrays: Mapping[str, npt.NDArray[Any]], adapter_config: Mapping[str, Any]) -> None:
        """Write the best adapter in mlx-lm's layout: flat names `….lora_a` and the config for its loader.

        A kill at any moment leaves a matching pair of files, or no adapter at all.
        """
        from safetensors.numpy import save

        weights, config = self.path / "adapters.safetensors", self.path / "adapter_config.json"
        text = _json(adapter_config)
        if not config.exists() or guarded(config, config.read_text, encoding="utf-8") != text:
            # Old weights must never be read with a new config.
            guarded(weights, weights.unlink, missing_ok=True)
            guarded(self.path, sync_folder, self.path)
            write_text(config, text)
        # safetensors writes the memory of a transposed array unchanged, which is the wrong order.
        content = save({name: np.asarray(array, order="C") for name, array in arrays.items()}, {"format": "mlx"})
        write_bytes(weights, content)

    def load_adapter(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return what `save_adapter` wrote, or mlx-lm; raises StorageError if it is missing or damaged.

        Raises ConfigError for an adapter in another layout.
        """
        if not self.path.is_dir():
            fix = "name the --out folder of an earlier sdpo train"
            raise StorageError("there is no run here, and no adapter", where=str(self.path), fix=fix)
        check_layout(self.path)
        try:
            config = json.loads((self.path / "adapter_config.json").read_text(encoding="utf-8"))
            arrays = read_arrays((self.path / "adapters.safetensors").read_bytes())
        except FileNotFoundError as error:
            raise StorageError("this run has no adapter yet", where=str(self.path), fix="train it first") from error
        except (OSError, ValueError) as error:
            raise self._damaged(str(getattr(error, "strerror", None) or error)) from error
        if not (isinstance(config, dict) and isinstance(config.get("lora_parameters", {}), dict)):
            raise self._damaged("adapter_config.json is not what mlx-lm writes")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise self._damaged("it contains numbers that are not finite")
        return arrays, config

    def _damaged(self, how: str) -> StorageError:
        fix = "restore it from a copy, or train into another --out"
        return StorageError(f"the adapter cannot be read: {how}", where=str(self.path), fix=fix)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write `manifest.json`: versions, base model, tokenizer hash, sandbox kind, seeds, command line."""
        write_text(self.path / "manifest.json", _json(manifest))

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest, empty if the run has none; raises StorageError if it is damaged."""
        path = self.path / "manifest.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot be read: {error}", where=str(path)) from error
        return found if isinstance(found, dict) else {}

    def write_config(self, config: Config) -> None:
        """Write `config.yaml`: every setting, resolved."""
        write_text(self.path / "config.yaml", dump_yaml(config))

    def write_card(self, text: str) -> None:
        """Write the model card to `README.md`."""
        write_text(self.path / "README.md", text)

    def rollouts_of(self, step: int, kind: RolloutKind = "step") -> Path:
        """Return the file of one step, `rollouts/step-000012.jsonl.gz`, or of the evaluation after it."""
        return self.rollouts / f"{kind}-{step:06d}.jsonl.gz"

    def write_rollouts(self, step: int, records: Iterable[Mapping[str, Any]], kind: RolloutKind = "step") -> None:
        """Write one JSON object per line, gzipped without a time stamp so that equal runs give equal files."""
        content = b"".join(map(json_line, records))
        write_bytes(self.rollouts_of(step, kind), gzip.compress(content, mtime=0))

    def read_rollouts(self, step: int, kind: RolloutKind = "step") -> list[dict[str, Any]]:
        """Return what `write_rollouts` wrote, empty if there is no file; raises StorageError if it is damaged."""
        path = self.rollouts_of(step, kind)
        try:
            lines = gzip.decompress(path.read_bytes()).splitlines()
            return [row for row in map(json.loads, lines) if isinstance(row, dict)]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, EOFError, zlib.error) as error:
            raise StorageError(f"cannot be read: {error}", where=str(path)) from error

    def rollout_steps(self, kind: RolloutKind = "step") -> list[int]:
        """Return the steps with stored rollouts, oldest first."""
        names = (ROLLOUTS.fullmatch(path.name) for path in self.rollouts.glob(f"{kind}-*.jsonl.gz"))
        return sorted(int(name[1]) for name in names if name)

    def rewind(self, step: int) -> None:
        """Delete the rollouts of later steps: a resumed run samples them again."""
        for kind in KINDS:
            for later in self.rollout_steps(kind):
                if later > step:
                    path = self.rollouts_of(later, kind)
                    guarded(path, path.unlink, missing_ok=True)


def adapter_sha256(folder: Path) -> str:
    """Return a hash (hex) of an adapter's weights and configuration. Raises StorageError."""
    parts = [folder / name for name in ("adapter_config.json", "adapters.safetensors")]
    return digest("".join(digest(guarded(path, path.read_bytes)) for path in parts).encode())


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(plain(record), indent=2, allow_nan=False) + "\n"
