"""MLflow: a database in the run folder, or the server that `MLFLOW_TRACKING_URI` names; `MLFLOW_*` variables win.

The local store is a database, since MLflow 3 refuses a folder of files.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from sdpo_mlx.runs.tracking.base import PROJECT, RunLocation, flat, numbers

RUN_TAG = "sdpo-mlx.run"
_FORBIDDEN = re.compile(r"[^/\w.\- ]")
_MAX_TAG, _MAX_PARAMS = 5_000, 100  # MLflow's limits of a tag's characters and of a request's parameters


def open_run(location: RunLocation) -> MLflow:
    """Start the run, or resume the one with our id."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read while it is imported
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its default of seven takes minutes
    from mlflow import MlflowClient

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for package in ("mlflow", "alembic"):
            logging.getLogger(package).setLevel(logging.ERROR)
    local = "MLFLOW_TRACKING_URI" not in os.environ
    client = MlflowClient(f"sqlite:///{location.folder / 'mlflow.db'}" if local else None)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    artifacts = (location.folder / "mlflow-artifacts").as_uri() if local else None
    known = client.get_experiment_by_name(name)
    experiment = str(known.experiment_id if known else client.create_experiment(name, artifact_location=artifacts))
    found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{location.id}'")
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return MLflow(client, found[0].info.run_id)
    run = client.create_run(experiment, run_name=location.name, tags={RUN_TAG: location.id}).info.run_id
    from mlflow.entities import Param

    params = [Param(_allowed(key), str(value)) for key, value in flat(location.config)]
    for start in range(0, len(params), _MAX_PARAMS):
        client.log_batch(run, params=params[start : start + _MAX_PARAMS])
    return MLflow(client, run)


def _allowed(name: str) -> str:
    """Return a name without the characters that MLflow forbids: `pass@1` becomes `pass_1`."""
    return _FORBIDDEN.sub("_", name)


class MLflow:
    """Metrics by step, settings as parameters, warnings as tags."""

    def __init__(self, client: Any, run: str) -> None:
        self._client, self._run = client, run

    def log(self, event: Mapping[str, Any]) -> None:
        """Send all numbers in one request, or a warning as a tag."""
        step = int(event["step"])
        if event["type"] == "warning":
            which = hashlib.sha256(event["message"].encode()).hexdigest()[:6]
            self._client.set_tag(self._run, f"warning.{step}.{which}", event["message"][:_MAX_TAG])
            return
        from mlflow.entities import Metric

        when = int(1000 * event["time"])
        self._client.log_batch(self._run, [Metric(_allowed(n), v, when, step) for n, v in numbers(event).items()])

    def close(self, finished: bool) -> None:
        """Set the run's final status."""
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")
