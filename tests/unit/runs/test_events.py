"""The event stream: whole lines, exact rewinding; the step's numbers; failures that stop a run."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_mlx.backends.base import Update
from sdpo_mlx.core.errors import DataError, DivergedError, StorageError
from sdpo_mlx.core.statistics import clustered
from sdpo_mlx.rl.metrics import StepFacts, step_metrics
from sdpo_mlx.runs.events import EventLog, read_events
from sdpo_mlx.training.failures import FailureMonitor
from sdpo_mlx.types import (
    Demonstration,
    DistillSample,
    Feedback,
    FeedbackKind,
    FinishReason,
    Problem,
    Rollout,
    RolloutGroup,
    Skip,
    TeacherContext,
)

NAMES = [
    "reward/mean",
    "success/rate",
    "success/low",
    "success/high",
    "feedback/rate",
    "groups/solved",
    "groups/no_signal",
    "teacher/with_demonstration",
    "teacher/with_feedback",
    "skip/no_signal",
    "skip/all_correct",
    "skip/too_long",
    "skip/no_tokens",
    "skip/grader_error",
    "length/mean",
    "length/truncated",
    "turns/mean",
    "loss",
    "divergence/mean",
    "importance/mean",
    "importance/clipped",
    "entropy",
    "grad/norm",
    "lr",
    "time/generate",
    "time/grade",
    "time/teacher",
    "time/learn",
    "time/other",
    "tokens/generated",
    "tokens/learned",
    "generations/total",
    "memory/peak",
    "memory/generate",
    "memory/teacher",
    "memory/learn",
]
FACTS = StepFacts(1e-4, 64, 2.0, 1.0, 3.0, 7.0, {"peak": 1024, "generate": 1024, "teacher": 512, "learn": 768})


def group_of(name: str, *kinds: FeedbackKind, finish: FinishReason = "stop", text: str = "") -> RolloutGroup:
    ids = np.arange(4, dtype=np.int32)
    rollout = Rollout(ids, ids, np.zeros(4, dtype=np.float32), finish, 0, "x")
    feedback = tuple(Feedback(float(kind == "pass"), kind == "pass", text, kind) for kind in kinds)
    return RolloutGroup(Problem(name, ()), (rollout,) * len(kinds), feedback)


def sample_of(name: str, weight: float = 1.0) -> DistillSample:
    ids = np.arange(4, dtype=np.int32)
    return DistillSample(name, 0, ids, (1, 4), ids, (1, 4), np.zeros(3, dtype=np.float32), weight)


def update_of(applied: bool = True, non_finite: tuple[str, ...] = ()) -> Update:
    return Update(applied, "non_finite" if non_finite else "", 0.5, 0.4, 1.5, 1.0, 0.1, 0.9, 12, (), 1.25, non_finite)


def record_run(log: EventLog, start: int, stop: int, *, saved: int) -> None:
    """Events in the order the loop emits them: all of step k before checkpoint k."""
    for step in range(start + 1, stop + 1):
        log.emit({"type": "step", "step": step, "loss": 1 / step})
        if step % 3 == 0:
            log.emit({"type": "warning", "step": step, "text": "w"})
            log.emit({"type": "eval", "step": step, "split": "held_out"})
        if step % saved == 0:
            log.emit({"type": "checkpoint", "step": step})


def timeless(path: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in event.items() if k != "time"} for event in read_events(path) if event["type"] != "resumed"
    ]


def test_a_line_starts_with_type_time_step_and_holds_no_bare_nan(tmp_path: Path) -> None:
    with EventLog(tmp_path / "e", clock=lambda: 12.34567) as log:
        record = log.emit(
            {"loss": math.nan, "step": np.int64(3), "type": "step", "n": np.float32(0.5), "l": [math.inf]}
        )
    line = (tmp_path / "e").read_text()
    assert line == '{"type": "step", "time": 12.346, "step": 3, "loss": null, "n": 0.5, "l": [null]}\n'
    assert record == json.loads(line)


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(), max_size=40))
def test_any_text_stays_one_ascii_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("log") / "e"
    with EventLog(path) as log:
        log.emit({"type": "warning", "step": 1, "text": text})
    content = path.read_bytes()
    assert content.isascii()
    assert content.count(b"\n") == 1
    assert [event["text"] for event in read_events(path)] == [text]


@pytest.mark.parametrize("saved", [1, 2, 4])
@pytest.mark.parametrize("killed", range(1, 9))
def test_the_stream_after_resuming_equals_an_uninterrupted_one(tmp_path: Path, killed: int, saved: int) -> None:
    for name, stops in (("whole", [10]), ("broken", [killed, 10])):
        with EventLog(tmp_path / name) as log:
            log.emit({"type": "run_started", "step": 0})
            for previous, stop in zip([0, *stops], stops, strict=False):
                start = previous // saved * saved
                if start or previous:
                    log.rewind(start)
                    log.emit({"type": "resumed", "step": start})
                record_run(log, start, stop, saved=saved)
    assert timeless(tmp_path / "broken") == timeless(tmp_path / "whole")


def test_rewinding_drops_the_end_of_the_run_and_keeps_its_start(tmp_path: Path) -> None:
    with EventLog(tmp_path / "e") as log:
        log.emit({"type": "run_started", "step": 0})
        record_run(log, 0, 2, saved=9)
        log.emit({"type": "run_finished", "step": 2})
        log.rewind(2)
        log.emit({"type": "step", "step": 3})
    assert [(e["type"], e["step"]) for e in read_events(tmp_path / "e")] == [
        ("run_started", 0),
        ("step", 1),
        ("step", 2),
        ("step", 3),
    ]


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_torn_last_line_is_mended_on_opening(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "e"
    with EventLog(path, clock=lambda: 0.0) as log:
        log.emit({"type": "step", "step": 1})
        log.emit({"type": "step", "step": 2})
    path.write_bytes(path.read_bytes()[:-cut])
    with EventLog(path) as log:
        log.emit({"type": "step", "step": 3})
    steps = [json.loads(line)["step"] for line in path.read_bytes().splitlines()]
    assert steps == ([1, 2, 3] if cut == 1 else [1, 3])


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "e", os.write
    calls = 0

    def write(descriptor: int, content: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content[:10])

    with EventLog(path) as log:
        log.emit({"type": "step", "step": 1})
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            with pytest.raises(StorageError, match="No space left"):
                log.emit({"type": "step", "step": 2})
            assert path.read_bytes() == before
            with pytest.raises(StorageError, match="No space left"):
                log.rewind(1)
        assert path.read_bytes() == before
        log.emit({"type": "step", "step": 2})
    assert [event["step"] for event in read_events(path)] == [1, 2]


def test_step_metrics_have_every_name_and_the_right_numbers() -> None:
    groups = [group_of("a", "pass", "wrong"), group_of("b", "wrong", "grader_error", finish="length")]
    contexts = [None, TeacherContext((), Demonstration("d", 0), "f"), TeacherContext((), None, "f"), None]
    skips = [Skip("no_signal", "a", 0), Skip("no_signal", "b", 0), Skip("grader_error", "b", 1)]
    found = step_metrics(groups, [sample_of("a")], contexts, skips, update_of(), FACTS)
    assert sorted(found) == sorted(NAMES)
    wanted = {
        "reward/mean": 1 / 3,
        "success/rate": 1 / 3,
        "feedback/rate": 0,
        "groups/solved": 0.5,
        "groups/no_signal": 0.5,
        "teacher/with_demonstration": 0.25,
        "teacher/with_feedback": 0.5,
        "skip/no_signal": 2,
        "skip/all_correct": 0,
        "skip/grader_error": 1,
        "skip/too_long": 0,
        "length/mean": 4,
        "length/truncated": 0.5,
        "turns/mean": 1,
        "time/teacher": 1.25,
        "time/learn": 1.75,
        "time/other": 1.0,
        "tokens/generated": 16,
        "tokens/learned": 12,
        "generations/total": 64,
        "grad/norm": 0.9,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_success_of_a_step_has_the_interval_over_its_problems() -> None:
    rows = [["pass"] * 4, ["wrong"] * 4, ["pass"] * 4, ["wrong"] * 3 + ["grader_error"]]
    groups = [group_of(str(n), *row) for n, row in enumerate(rows)]
    found = step_metrics(groups, [], [], [], None, FACTS)
    expected = clustered([[1] * 4, [0] * 4, [1] * 4, [0] * 3], seed=FACTS.generations)
    assert (found["success/low"], found["success/high"]) == expected
    assert found["success/high"] - found["success/low"] > 0.8  # 16 rollouts, but 4 problems


def test_step_metrics_without_anything_are_nan_not_an_error() -> None:
    found = step_metrics([], [], [], [], None, FACTS)
    assert sorted(found) == sorted(NAMES)
    assert all(math.isnan(found[name]) for name in ("reward/mean", "loss", "length/mean", "groups/solved"))
    assert found["tokens/learned"] == 0


def test_watch_stops_at_the_fifth_non_finite_update_in_a_row() -> None:
    watch, bad = FailureMonitor(), update_of(applied=False, non_finite=("p7",))
    outcomes = [watch.observe([], [], each) for each in [bad] * 4 + [update_of()] + [bad] * 5]
    assert [outcome.stop is not None for outcome in outcomes] == [False] * 9 + [True]
    assert isinstance(outcomes[-1].stop, DivergedError)
    assert outcomes[-1].stop.exit_code == 6
    assert all("p7" in outcome.warnings[0] for outcome in outcomes if outcome.warnings)
    assert [len(outcome.warnings) for outcome in outcomes] == [1] * 4 + [0] + [1] * 5


def test_watch_stops_after_twenty_grader_errors_in_a_row_and_not_before() -> None:
    watch = FailureMonitor()
    assert watch.observe([group_of("a", *["grader_error"] * 19, "wrong")], [], None).stop is None
    stop = watch.observe([group_of("a", *["grader_error"] * 20, "wrong")], [], None).stop
    assert isinstance(stop, DataError)
    assert "20 times in a row" in str(stop)


@pytest.mark.parametrize(("failures", "stops"), [(10, False), (11, True)])
def test_watch_stops_when_over_a_tenth_of_the_grades_fail(failures: int, stops: bool) -> None:
    kinds: list[FeedbackKind] = ["wrong"] * (100 - failures)
    for i in range(failures):
        kinds.insert(i * 8, "grader_error")
    assert (FailureMonitor().observe([group_of("a", *kinds)], [], None).stop is not None) == stops


@pytest.mark.parametrize(("too_long", "stops"), [(2, False), (3, True)])
def test_watch_stops_when_over_a_twentieth_of_the_prompts_are_too_long(too_long: int, stops: bool) -> None:
    groups = [group_of(str(i), "wrong") for i in range(40)]
    skips = [Skip("too_long", str(i), rollout) for i in range(too_long) for rollout in range(8)]
    assert (FailureMonitor().observe(groups, skips, None).stop is not None) == stops


def test_watch_resumes_exactly_from_its_counters() -> None:
    whole, broken = FailureMonitor(), FailureMonitor()
    for step in range(20):
        groups = [group_of("a", "grader_error" if step % 12 == 0 else "wrong", text="say")]
        broken = FailureMonitor.from_dict(json.loads(json.dumps(broken.to_dict())))
        assert whole.observe(groups, [], None) == broken.observe(groups, [], None)
    assert whole == broken
    assert sum(whole.grader_window) == 2
