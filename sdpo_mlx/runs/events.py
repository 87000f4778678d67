"""The event stream `events.jsonl`, and the numbers of its step events.

One JSON object a line. `step` counts completed steps, as the checkpoints do. An event of step k must be
emitted before checkpoint k is saved (the `checkpoint` event too): then `rewind(k)` leaves exactly what an
uninterrupted run has at that point, wherever the kill fell.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from sdpo_mlx.backends.base import Update
from sdpo_mlx.core.storage import guarded, json_line, plain, sync, trouble, write_all, write_bytes
from sdpo_mlx.types import DistillSample, Rollout, RolloutGroup, Skip, SkipReason, TeacherContext


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a stream in order; lines that are no JSON object (a torn one) are passed over.

    A missing file has none. Raises StorageError where the file cannot be read.
    """
    for line in guarded(path, path.read_bytes).splitlines() if path.exists() else ():
        event = _parse(line)
        if event is not None:
            yield event


class EventLog:
    """Append-only writer of one event stream; opening it mends a torn last line.

    Raises StorageError where the disk refuses; the file then ends with the last whole event.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._descriptor = self._open()

    def emit(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Append one event (`type` and `step` are needed) and return it as written, `time` in epoch seconds.

        Non-finite numbers become null. It survives a kill at once and a power cut after `sync`.
        """
        rest = {name: value for name, value in event.items() if name not in ("type", "time", "step")}
        head = {"type": event["type"], "time": round(self._clock(), 3), "step": int(event["step"])}
        record: dict[str, Any] = plain({**head, **rest})
        start = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            write_all(self._descriptor, json_line(record))
        except OSError as error:
            os.ftruncate(self._descriptor, start)
            raise trouble(error, self.path) from error
        return record

    def sync(self) -> None:
        """Wait until the drive holds every event; called before a checkpoint."""
        guarded(self.path, sync, self._descriptor)

    def rewind(self, step: int, also: Callable[[Mapping[str, Any]], bool] = lambda _: False) -> None:
        """Drop what a run resumed after `step` completed steps will say again, atomically.

        That is every event of a later step, `run_finished`, unreadable lines and what `also` picks; `run_started`
        stays.
        """
        kept = [
            event
            for event in read_events(self.path)
            if event.get("type") == "run_started"
            or (event.get("type") != "run_finished" and _step(event) <= step and not also(event))
        ]
        self.close()
        try:
            write_bytes(self.path, b"".join(map(json_line, kept)))
        finally:
            self._descriptor = self._open()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> int:
        descriptor = guarded(self.path, os.open, self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _mend(descriptor, self.path)
        except OSError as error:
            os.close(descriptor)
            raise trouble(error, self.path) from error
        return descriptor


@dataclass(frozen=True)
class StepFacts:
    """What only the loop knows of a step: seconds of wall clock, counters, bytes.

    `learn_seconds` includes the teacher's forward; `generations` counts every rollout since the start.
    """

    learning_rate: float
    generations: int
    generate_seconds: float
    grade_seconds: float
    learn_seconds: float
    total_seconds: float
    memory: Mapping[str, int]


def step_metrics(
    groups: Sequence[RolloutGroup],
    samples: Sequence[DistillSample],
    contexts: Iterable[TeacherContext | None],
    skips: Sequence[Skip],
    update: Update | None,
    facts: StepFacts,
) -> dict[str, float]:
    """All numbers of a step event under their flat names (CLI.md), NaN where there is nothing to average.

    Shares are of 1; `contexts` are those of the rollouts that have one (None is passed over).
    `update` is None where nothing could be learned.
    """
    return {
        **_rewards(groups, samples, skips),
        **_contexts(contexts, sum(len(group.rollouts) for group in groups)),
        **{f"skip/{reason}": sum(skip.reason == reason for skip in skips) for reason in get_args(SkipReason)},
        **_lengths(groups),
        **_learning(update, facts),
        **_times(update, facts),
        "tokens/generated": sum(_tokens(rollout) for group in groups for rollout in group.rollouts),
        "tokens/learned": update.tokens if update is not None and update.applied else 0,
        "generations/total": facts.generations,
        **{f"memory/{phase}": facts.memory.get(phase, math.nan) for phase in ("peak", "generate", "teacher", "learn")},
    }


def _rewards(
    groups: Sequence[RolloutGroup], samples: Sequence[DistillSample], skips: Sequence[Skip]
) -> dict[str, float]:
    """Means over graded rollouts; shares over groups."""
    graded = [each for group in groups for each in group.feedback if each.kind != "grader_error"]
    teaching = {sample.problem_id for sample in samples if sample.distil_weight or sample.policy_weight}
    silent = {skip.problem_id for skip in skips if skip.reason == "no_signal"} - teaching
    return {
        "reward/mean": _mean([each.reward for each in graded]),
        "success/rate": _mean([each.success for each in graded]),
        "groups/solved": _mean([any(each.success for each in group.feedback) for group in groups]),
        "groups/no_signal": _mean([group.problem.id in silent for group in groups]),
    }


def _contexts(contexts: Iterable[TeacherContext | None], rollouts: int) -> dict[str, float]:
    seen = [context for context in contexts if context is not None]
    demonstrated = sum(context.demonstration is not None for context in seen)
    told = sum(context.feedback is not None for context in seen)
    return {
        "teacher/with_demonstration": demonstrated / rollouts if rollouts else math.nan,
        "teacher/with_feedback": told / rollouts if rollouts else math.nan,
    }


def _lengths(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Of whole episodes: all tokens of the model, and how often it was asked."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {
        "length/mean": _mean([_tokens(rollout) for rollout in rollouts]),
        "length/truncated": _mean([rollout.finish == "length" for rollout in rollouts]),
        "turns/mean": _mean([len(rollout.turns) for rollout in rollouts]),
    }


def _tokens(rollout: Rollout) -> int:
    return sum(turn.ids_T.size for turn in rollout.turns)


def _learning(update: Update | None, facts: StepFacts) -> dict[str, float]:
    return {
        "loss": update.loss if update else math.nan,
        "divergence/mean": update.divergence if update else math.nan,
        "importance/mean": update.importance_mean if update else math.nan,
        "importance/clipped": update.importance_clipped if update else math.nan,
        "entropy": update.entropy if update else math.nan,
        "grad/norm": update.grad_norm if update else math.nan,
        "lr": facts.learning_rate,
    }


def _times(update: Update | None, facts: StepFacts) -> dict[str, float]:
    """Seconds; grading overlaps with generation, so the rest is floored at zero."""
    teacher = update.teacher_seconds if update else 0.0
    known = facts.generate_seconds + facts.grade_seconds + facts.learn_seconds
    return {
        "time/generate": facts.generate_seconds,
        "time/grade": facts.grade_seconds,
        "time/teacher": teacher,
        "time/learn": max(0.0, facts.learn_seconds - teacher),
        "time/other": max(0.0, facts.total_seconds - known),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _step(event: Mapping[str, Any]) -> int:
    step = event.get("step")
    return step if isinstance(step, int) else 0


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _mend(descriptor: int, path: Path) -> None:
    """Finish a last line that lacks only its line feed, cut one that is torn."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return
    if _parse(content[whole:]) is None:
        os.ftruncate(descriptor, whole)
    else:
        write_all(descriptor, b"\n")
