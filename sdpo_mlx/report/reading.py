"""A run folder as a report needs it; what is missing or damaged is told in `problems`, not raised."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sdpo_mlx.errors import ConfigError, StorageError
from sdpo_mlx.metrics import read_events
from sdpo_mlx.run_folder import RunFolder

STEPS_SHOWN = 12  # whose rollouts are in the report
ROLLOUTS_A_STEP = 6
FOLLOWED = 6  # problems whose answers are followed over time
LARGEST = 3_000_000  # characters of rollouts; the whole stays under 5 MB

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Story:
    """One run: its events by type, its settings, and the rollouts that are shown, each with its step."""

    name: str
    steps: Sequence[Row]
    evals: Sequence[Row]
    notes: Sequence[Row]
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    rollouts: Sequence[Row]
    counts: Sequence[Row]
    problems: Sequence[str]


def read_story(folder: Path) -> Story:
    """Everything of a run that can be read; raises ConfigError where there is no run."""
    run = RunFolder(folder)
    if not run.events.is_file():
        fix = "name the --out folder of an earlier sdpo train"
        raise ConfigError("there is no run here", where=str(folder), fix=fix)
    events, faults = list(read_events(run.events)), list[str]()
    kinds = {kind: [e for e in events if e.get("type") == kind] for kind in ("step", "eval")}
    notes = [e for e in events if e.get("type") in ("warning", "resumed", "run_finished")]
    rollouts, counts = _rollouts(run, faults)
    return Story(
        name=folder.resolve().name,
        steps=_last_of_each(kinds["step"]),
        evals=kinds["eval"],
        notes=notes,
        config=_settings(folder / "config.yaml", faults),
        manifest=_manifest(run, faults),
        rollouts=rollouts,
        counts=counts,
        problems=faults,
    )


def _last_of_each(events: Sequence[Row]) -> list[Row]:
    """One event a step, in order: what a resumed run said again counts."""
    found = {event["step"]: event for event in events if isinstance(event.get("step"), int)}
    return [found[step] for step in sorted(found)]


def _settings(path: Path, faults: list[str]) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        faults.append("config.yaml cannot be read")
        return {}
    return found


def _manifest(run: RunFolder, faults: list[str]) -> Mapping[str, Any]:
    try:
        return run.read_manifest()
    except StorageError:
        faults.append("manifest.json cannot be read")
        return {}


def _rollouts(run: RunFolder, faults: list[str]) -> tuple[list[Row], list[Row]]:
    """The rollouts to show, and of all that were kept problem, step, success and kind of feedback."""
    whole: dict[int, list[Row]] = {}
    for step in run.rollout_steps():
        try:
            whole[step] = [row for row in run.read_rollouts(step) if isinstance(row, dict)]
        except StorageError:
            faults.append(f"the rollouts of step {step} cannot be read")
    everything = [{**row, "step": step} for step, rows in whole.items() for row in rows]
    counts: list[Row] = [_count(row) for row in everything]
    return _within(_chosen(everything, list(whole))), counts


def _count(row: Row) -> Row:
    success = bool(row.get("success"))
    return {"problem": str(row.get("problem")), "step": row["step"], "success": success, "kind": str(row.get("kind"))}


def _chosen(rows: Sequence[Row], steps: Sequence[int]) -> list[Row]:
    """Some steps whole, those with candidates first; and the first answer to some problems at every step."""
    gap = (len(steps) - 1) / (STEPS_SHOWN - 1)
    spread = {steps[round(i * gap)] for i in range(STEPS_SHOWN)} if steps else set[int]()
    told = {row["step"] for row in rows if "candidates" in row}
    spread = {_nearest(step, told, (gap + 1) / 2) for step in spread}
    by_problem: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("index") == 0:
            by_problem.setdefault(str(row.get("problem")), []).append(row)
    often = sorted(by_problem.values(), key=lambda each: (-len(each), str(each[0].get("problem"))))[:FOLLOWED]
    wanted = [row for each in often if len(each) > 1 for row in _spread(each, 8)]
    for step in sorted(spread):
        here = sorted((row for row in rows if row["step"] == step), key=lambda row: "candidates" not in row)
        wanted += here[:ROLLOUTS_A_STEP]
    unique = {(row["step"], str(row.get("problem")), row.get("index")): row for row in wanted}
    return [unique[key] for key in sorted(unique, key=str)]


def _nearest(step: int, told: Iterable[int], most: float) -> int:
    """The step of those with candidates that is next to this one, or itself where none is near."""
    near = min(told, key=lambda each: (abs(each - step), each), default=step)
    return near if abs(near - step) <= most else step


def _spread(rows: Sequence[Row], most: int) -> list[Row]:
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def _within(rows: Sequence[Row]) -> list[Row]:
    """As many as fit, dropping every second one until they do."""
    rows = list(rows)
    while len(rows) > 1 and sum(len(json.dumps(row)) for row in rows) > LARGEST:
        rows = rows[::2]
    return sorted(rows, key=lambda row: (row["step"], str(row.get("problem")), row.get("index", 0)))
