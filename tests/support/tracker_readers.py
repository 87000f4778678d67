"""What trackers hold of a run, read back the way their own programs do: (name, step) to every value it has."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.tracking.base import MEASURED, numbers

Points = dict[tuple[str, int], list[float]]
_BLOCK, _HEAD = 32_768, 7  # LevelDB's log format, after a file head that is as long as a record's


def stream(run: Path) -> Points:
    """The same of `events.jsonl`."""
    found: Points = defaultdict(list)
    for event in read_events(run / "events.jsonl"):
        for name, value in numbers(event).items() if event["type"] in MEASURED else ():
            found[name, event["step"]].append(value)
    return found


def tensorboard(run: Path) -> Points:
    """Through TensorBoard's accumulator."""
    found: Points = defaultdict(list)
    seen = _accumulated(run)
    for name in seen.Tags()["scalars"]:
        for point in seen.Scalars(name):
            found[name, point.step].append(point.value)
    return found


def tensorboard_texts(run: Path, tag: str) -> list[str]:
    """The texts under a tag."""
    return [text.tensor_proto.string_val[0].decode() for text in _accumulated(run).Tensors(tag)]


def _accumulated(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    seen.Reload()
    return seen


def wandb(run: Path) -> Points:
    """The rows of all offline files, in the order in which `wandb sync` sends them."""
    found: Points = defaultdict(list)
    for row in wandb_rows(run):
        for name, value in row.items():
            if name != "step" and not name.startswith("_") and isinstance(value, int | float):
                found[name, row["step"]].append(value)
    return found


def wandb_rows(run: Path) -> list[dict[str, Any]]:
    """Every row of the history."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(run)
        if record.WhichOneof("record_type") == "history"
    ]


def wandb_records(run: Path) -> Iterator[Any]:
    """Every record of every offline file."""
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        for content in _leveldb(file.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            yield record


def _leveldb(content: bytes) -> Iterator[bytes]:
    place, parts = _HEAD, b""
    while place + _HEAD <= len(content):
        if _BLOCK - place % _BLOCK < _HEAD:
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + _HEAD : place + _HEAD + length]
        place += _HEAD + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def trackio(run: Path) -> Points:
    """Through trackio's own reader."""
    from trackio.sqlite_storage import SQLiteStorage

    found: Points = defaultdict(list)
    for row in SQLiteStorage.get_logs("sdpo-mlx", trackio_name(run)):
        for name, value in row.items():
            if name not in ("step", "timestamp") and isinstance(value, int | float):
                found[name, row["step"]].append(value)
    return found


def trackio_name(run: Path) -> str:
    """What trackio knows the run by."""
    return f"{run.name}-{json.loads((run / 'trackers.json').read_text())['id']}"


def mlflow(run: Path) -> Points:
    """Through MLflow's client."""
    client, known = mlflow_run(run)
    found: Points = defaultdict(list)
    for name in known.data.metrics:
        for point in client.get_metric_history(known.info.run_id, name):
            found[name, point.step].append(point.value)
    return found


def mlflow_run(run: Path) -> tuple[Any, Any]:
    """The client and the one run in the database."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sdpo-mlx")
    [only] = client.search_runs([experiment.experiment_id])
    return client, only
