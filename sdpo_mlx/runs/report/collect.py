"""Read a run folder for the report; missing or damaged files are listed in `problems`, not raised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sdpo_mlx.core.errors import ConfigError, StorageError
from sdpo_mlx.runs.events import number, read_events
from sdpo_mlx.runs.folder import LESSONS, RunFolder

NOTES = ("probe", "warning", "decline", "resumed", "run_finished")  # types of events
ROUNDING = 1e-9
MAX_STEPS = 12  # steps whose rollouts are in the report
ROLLOUTS_PER_STEP = 6
MAX_FOLLOWED = 6  # problems whose rollouts are shown over time
MAX_OVER_TIME = 8  # rollouts of one of them, and of a held-out one

Row = Mapping[str, Any]
T = TypeVar("T", list[Any], dict[str, Any])
Item = TypeVar("Item")


@dataclass(frozen=True)
class RunData:
    """One run: its events by type, its settings, the rollouts to show, and the outcome of each stored rollout."""

    name: str
    steps: Sequence[Row]
    evals: Sequence[Row]
    notes: Sequence[Row]
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    rollouts: Sequence[Row]
    outcomes: Sequence[Row]
    problems: Sequence[str]
    coached: bool = False  # a coaching session has no end to reach

    @property
    def has_teacher(self) -> bool:
        """Whether a self-teacher took part; GRPO alone has none."""
        return bool(self.setting("objective", "kind") != "grpo")

    @property
    def finished(self) -> Row:
        """The last `run_finished` event, empty if there is none."""
        return next((row for row in reversed(self.notes) if row.get("type") == "run_finished"), {})

    @property
    def score_name(self) -> str:
        """What held-out scores are: success rates, or mean rewards if some rewards lie between 0 and 1."""
        pairs = [(number(row.get("score")), number(row.get("pass@1"))) for row in self.evals]
        between = any(a is not None and b is not None and abs(a - b) > ROUNDING for a, b in pairs)
        return "mean reward" if between else "success"

    def setting(self, section: str, key: str) -> Any:
        """Return one setting, None if it is missing."""
        found = self.config.get(section)
        return found.get(key) if isinstance(found, Mapping) else None


def percent(share: Any) -> str:
    """Return a share of 1 in percent, `-` for anything else."""
    return "-" if (value := number(share)) is None else f"{100 * value:.1f} %"


def read_runs(folders: Sequence[Path]) -> list[RunData]:
    """Read several runs, each named by as much of the end of its path as it takes; repeated folders get a number."""
    parts = [folder.resolve().parts for folder in folders]
    candidates = (
        ["/".join(each[-depth:]) for each in parts] for depth in range(1, max(map(len, parts), default=0) + 1)
    )
    numbered = [f"{each[-1]} ({n + 1})" for n, each in enumerate(parts)]
    names = next((names for names in candidates if len(set(names)) == len(names)), numbered)
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_run(folder: Path, name: str = "") -> RunData:
    """Read everything of a run that is readable; raises ConfigError if there is no run."""
    run = RunFolder(folder)
    if not run.events.is_file():
        fix = "name the --out folder of an earlier sdpo train"
        raise ConfigError("there is no run here", where=str(folder), fix=fix)
    events, problems = list(read_events(run.events)), list[str]()

    def readable(what: str, kind: type[T], read: Callable[[], Any]) -> T:
        with suppress(OSError, ValueError, StorageError, yaml.YAMLError):
            found = read()
            if isinstance(found, kind):
                return found
        problems.append(f"{what} cannot be read")
        return kind()

    # A resumed run may emit a step again: the last event counts.
    steps = {e["step"]: e for e in events if e.get("type") == "step" and isinstance(e.get("step"), int)}
    stored: list[Row] = []
    for step in run.rollout_steps():
        rows = readable(f"the rollouts of step {step}", list, partial(run.read_rollouts, step))
        stored += [{**row, "step": step} for row in rows]
    turns = [turn for row in stored for turn in _turns(row)]
    held_out: list[Row] = []
    for step in _evenly(run.rollout_steps("eval"), MAX_OVER_TIME):
        rows = readable(f"the held-out rollouts of step {step}", list, partial(run.read_rollouts, step, "eval"))
        held_out += [turn for row in rows for turn in _turns({**row, "step": step, "held_out": True})]
    return RunData(
        name=name or folder.resolve().name,
        steps=[steps[step] for step in sorted(steps)],
        evals=[e for e in events if e.get("type") == "eval"],
        notes=[e for e in events if e.get("type") in NOTES],
        config=readable("config.yaml", dict, lambda: yaml.safe_load((folder / "config.yaml").read_bytes())),
        manifest=readable("manifest.json", dict, run.read_manifest),
        rollouts=[*_choose(turns, list(dict.fromkeys(row["step"] for row in stored))), *held_out],
        outcomes=[
            {
                "problem": str(row.get("problem")),
                "step": row["step"],
                "success": bool(row.get("success")),
                "kind": str(row.get("kind")),
            }
            for row in stored
        ],
        problems=problems,
        coached=(folder / LESSONS).exists(),
    )


def _turns(row: Row) -> list[Row]:
    """Return a row for each turn; earlier turns have their own tokens, and the reply in place of feedback."""
    earlier = [turn for turn in row.get("earlier") or [] if isinstance(turn, Mapping)]
    teacher, count = row.get("teacher"), len(earlier) + 1
    common = {name: value for name, value in row.items() if name != "candidates"}
    rows: list[Row] = []
    for at, turn in enumerate(earlier, 1):
        # Each turn adds its answer and its reply to the teacher's messages.
        seen = teacher[: len(teacher) - 2 * (count - at)] if isinstance(teacher, list) else []
        rows.append({**common, **turn, "feedback": turn.get("reply", ""), "teacher": seen, "turn": at})
    return [{**each, "turns": count} for each in (*rows, {**row, "turn": count})]


def _choose(rows: Sequence[Row], steps: Sequence[int]) -> list[Row]:
    """Return all rollouts of some steps, those with candidates first, and some problems' rollouts over all steps."""
    gap, spread = (len(steps) - 1) / (MAX_STEPS - 1), _evenly(steps, MAX_STEPS)
    with_candidates = {row["step"] for row in rows if "candidates" in row}
    chosen = _over_time(rows)
    for step in spread:
        # A step with candidates stands in for one close by.
        near = min(with_candidates, key=lambda each: (abs(each - step), each), default=step)
        step = near if abs(near - step) <= (gap + 1) / 2 else step
        here = sorted((row for row in rows if row["step"] == step), key=lambda row: "candidates" not in row)
        chosen += here[:ROLLOUTS_PER_STEP]
    unique = {}
    for row in chosen:
        index = row.get("index")
        unique[row["step"], str(row.get("problem")), index if isinstance(index, int) else 0, row["turn"]] = row
    return [unique[key] for key in sorted(unique)]


def _over_time(rows: Sequence[Row]) -> list[Row]:
    """Return the first rollouts of some problems over the steps, and two with candidates of each."""
    first: dict[str, list[Row]] = {}
    with_candidates: dict[str, list[Row]] = {}
    for row in rows:
        name = str(row.get("problem"))
        if row.get("index") == 0 and row.get("turn") == row.get("turns"):
            first.setdefault(name, []).append(row)
        if "candidates" in row:
            with_candidates.setdefault(name, []).append(row)
    repeated = [name for name, each in first.items() if len(each) > 1]
    followed = sorted(repeated, key=lambda name: (name not in with_candidates, -len(first[name]), name))
    chosen = list[Row]()
    for name in followed[:MAX_FOLLOWED]:
        chosen += [*_evenly(first[name], MAX_OVER_TIME), *with_candidates.get(name, [])[:2]]
    return chosen


def _evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most so many items, evenly spaced, both ends included."""
    gap = (len(items) - 1) / (most - 1)
    return list(items) if gap <= 1 else [items[round(i * gap)] for i in range(most)]
