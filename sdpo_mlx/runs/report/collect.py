"""A run folder as a report needs it; what is missing or damaged is told in `problems`, not raised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sdpo_mlx.core.errors import ConfigError, StorageError
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import RunFolder

STEPS_SHOWN = 12  # whose rollouts are in the report
ROLLOUTS_A_STEP = 6
FOLLOWED = 6  # problems whose answers are followed over time
OVER_TIME = 8  # answers to one of them
LESSONS = "coaching.jsonl"  # what a coached folder has and no other

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunData:
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
    open_end: bool = True  # it has an end that it may not have come to; coaching has none

    @property
    def taught(self) -> bool:
        """Whether a self-teacher took part; GRPO alone has none."""
        return bool(self._setting("objective", "kind") != "grpo")

    def _setting(self, section: str, key: str) -> Any:
        found = self.config.get(section)
        return found.get(key) if isinstance(found, Mapping) else None

    def named(self, section: str) -> str:
        """The name of the model or of the task."""
        return str(self._setting(section, "name") or "?")


def read_stories(folders: Sequence[Path]) -> list[RunData]:
    """Several runs, under names that tell them apart."""
    return [read_story(folder, name) for folder, name in zip(folders, _apart(folders), strict=True)]


def _apart(folders: Sequence[Path]) -> list[str]:
    """As much of the end of each path as it takes; a folder that comes twice gets a number."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{each[-1]} ({n + 1})" for n, each in enumerate(parts)]


def read_story(folder: Path, name: str = "") -> RunData:
    """Everything of a run that can be read; raises ConfigError where there is no run."""
    run = RunFolder(folder)
    if not run.events.is_file():
        fix = "name the --out folder of an earlier sdpo train"
        raise ConfigError("there is no run here", where=str(folder), fix=fix)
    events, faults = list(read_events(run.events)), list[str]()
    kinds = {kind: [e for e in events if e.get("type") == kind] for kind in ("step", "eval")}
    notes = [e for e in events if e.get("type") in ("warning", "resumed", "run_finished")]
    rollouts, counts = _rollouts(run, faults)
    return RunData(
        name=name or folder.resolve().name,
        steps=_last_of_each(kinds["step"]),
        evals=kinds["eval"],
        notes=notes,
        config=_settings(folder / "config.yaml", faults),
        manifest=_manifest(run, faults),
        rollouts=rollouts,
        counts=counts,
        problems=faults,
        open_end=not (folder / LESSONS).exists(),
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
    return _chosen([turn for row in everything for turn in _turns(row)], list(whole)), counts


def _turns(row: Row) -> list[Row]:
    """A row a turn: an episode's earlier turns have tokens of their own, and a reply where the last has its verdict."""
    earlier = [turn for turn in row.get("earlier") or [] if isinstance(turn, Mapping)]
    teacher, count = row.get("teacher"), len(earlier) + 1
    whole = {name: value for name, value in row.items() if name != "candidates"}
    rows = [{**whole, **turn, "feedback": turn.get("reply", "")} for turn in earlier]
    # Each turn adds its answer and its reply to what the teacher reads.
    seen = [teacher[: len(teacher) - 2 * (count - n)] if isinstance(teacher, list) else [] for n in range(1, count)]
    before = [{**each, "teacher": read, "turn": n} for n, (each, read) in enumerate(zip(rows, seen, strict=True), 1)]
    last = {**row, "turn": count}
    return [{**each, "turns": count} for each in (*before, last)]


def _count(row: Row) -> Row:
    success = bool(row.get("success"))
    return {"problem": str(row.get("problem")), "step": row["step"], "success": success, "kind": str(row.get("kind"))}


def _chosen(rows: Sequence[Row], steps: Sequence[int]) -> list[Row]:
    """Some steps whole, those with candidates first; and the first answer to some problems at every step."""
    gap = (len(steps) - 1) / (STEPS_SHOWN - 1)
    spread = {steps[round(i * gap)] for i in range(STEPS_SHOWN)} if steps else set[int]()
    told = {row["step"] for row in rows if "candidates" in row}
    spread = {_nearest(step, told, (gap + 1) / 2) for step in spread}
    wanted = _followed(rows)
    for step in sorted(spread):
        here = sorted((row for row in rows if row["step"] == step), key=lambda row: "candidates" not in row)
        wanted += here[:ROLLOUTS_A_STEP]
    unique = {_key(row): row for row in wanted}
    return [unique[key] for key in sorted(unique)]


def _key(row: Row) -> tuple[int, str, int, int]:
    index, turn = row.get("index"), row.get("turn")
    return (
        row["step"],
        str(row.get("problem")),
        index if isinstance(index, int) else 0,
        turn if isinstance(turn, int) else 1,
    )


def _followed(rows: Sequence[Row]) -> list[Row]:
    """Some problems' first answers from step to step, and what is known of their tokens; those that have both first."""
    firsts: dict[str, list[Row]] = {}
    told: dict[str, list[Row]] = {}
    for row in rows:
        name = str(row.get("problem"))
        if row.get("index") == 0 and row.get("turn") == row.get("turns"):
            firsts.setdefault(name, []).append(row)
        if "candidates" in row:
            told.setdefault(name, []).append(row)
    again = [name for name, each in firsts.items() if len(each) > 1]
    often = sorted(again, key=lambda name: (name not in told, -len(firsts[name]), name))[:FOLLOWED]
    return [row for name in often for row in (*_spread(firsts[name], OVER_TIME), *told.get(name, [])[:2])]


def _nearest(step: int, told: Iterable[int], most: float) -> int:
    """The step of those with candidates that is next to this one, or itself where none is near."""
    near = min(told, key=lambda each: (abs(each - step), each), default=step)
    return near if abs(near - step) <= most else step


def _spread(rows: Sequence[Row], most: int) -> list[Row]:
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
