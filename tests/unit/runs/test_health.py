"""The health rules: each failure is found once, soon, with its numbers; healthy streams and resumed runs are quiet."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from health_streams import EVAL_EVERY, HEALTHY, evaluation, replayed, stream, warnings
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.core import statistics
from sdpo_mlx.training import health
from sdpo_mlx.training.history import MOST_STEPS, History

ONSET = 10
NOTHING: dict[str, Any] = {"loss": None, "grad/norm": None, "success/rate": 0.05}
# What changes after step ONSET, the rule that must see it, and figures that its line must have.
FAILURES: list[tuple[str, Mapping[str, Any], tuple[str, ...]]] = [
    ("no_signal", NOTHING, ("5 steps in a row", "320 rollouts", "224 with feedback", "16 successes")),
    ("no_signal", NOTHING | {"success/rate": 1.0}, ("all 320 rollouts", "5 steps in a row")),
    ("teacher", {"teacher/success": 0.0}, ("0 % of 32", "25 % without")),
    ("success", {"success/rate": 0.0}, ("fell from 30 %", "to 0 %")),
    ("entropy", {"entropy": 1.2}, ("rose from 0.5", "to 1.2", "steps 1 to 3")),
    ("entropy", {"entropy": 0.02}, ("fell from 0.5", "to 0.02", "30 % and 30 %")),
    ("length", {"length/mean": 170.0}, ("grew from 40", "steps 1 to 3")),
    ("length", {"length/mean": 5.0}, ("shrank from 40",)),
    ("truncated", {"length/truncated": 0.4}, ("5 %", "steps 1 to 3")),
    ("leakage", {"leakage/rate": 0.3}, ("0 %", "steps 1 to 3")),
    ("gradient", {"grad/norm": 1e-5}, ("0.02", "1e-05", "0.04")),
    ("held_out", {"score": 0.2}, ("59.4 % at step 0", "to 18.8 %", "-40.6 points")),
    ("divergence", {"shift": 2.5}, ("2.50 nats", "s.e. 0.05")),
]


@pytest.mark.parametrize(
    ("rule", "changed", "figures"), FAILURES, ids=lambda each: each if isinstance(each, str) else ""
)
def test_a_failure_is_warned_of_once_within_two_evaluations(
    rule: str, changed: Mapping[str, Any], figures: tuple[str, ...]
) -> None:
    events = replayed(stream(onset=ONSET, **changed))
    found = [event for event in events if event["type"] == "warning"]
    assert [event["rule"] for event in found] == [rule]
    assert ONSET < found[0]["step"] <= ONSET + 2 * EVAL_EVERY
    for figure in figures:
        assert figure in found[0]["message"]
    assert found[0]["evidence"]
    assert all(math.isfinite(value) for value in found[0]["evidence"].values())


def test_a_small_gradient_is_no_failure_where_nearly_all_rollouts_succeed() -> None:
    changed = {"grad/norm": 1e-5}
    assert not warnings(stream(onset=ONSET, **changed, **{"success/rate": 0.92}))
    assert [rule for rule, _ in warnings(stream(onset=ONSET, **changed, **{"success/rate": 0.8}))] == ["gradient"]


def test_a_teacher_without_any_success_needs_two_looks() -> None:
    start = {"teacher/success": 0.0, "teacher/student": 0.0, "success/rate": 0.0}
    assert warnings(stream(onset=0, **start)) == [("teacher", 4)]


BARREN: dict[str, Any] = {"success/rate": 0.0, "teacher/success": 0.0, "teacher/student": 0.0, "loss": None}


def barren(rollouts: int = 64, answers: int = 32, **changed: Any) -> list[dict[str, Any]]:
    """A run in which nothing succeeds, neither in training nor in the probe before it, nor held-out."""
    probe = {"type": "probe", "step": 0, "success": 0.0, "teacher/answers": answers, "teacher/success": 0.0}
    events = [each for each in stream(onset=0, rollouts=rollouts, **BARREN | changed) if each["type"] == "step"]
    return [probe, *({**each, "reward/mean": 0.0} for each in events)]


@pytest.mark.parametrize(("rollouts", "step", "done"), [(64, 1, "the first step"), (16, 3, "3 steps")])
def test_no_success_at_all_is_one_warning_with_what_to_do(rollouts: int, step: int, done: str) -> None:
    (warning,) = [event for event in replayed(barren(rollouts)) if event["type"] == "warning"]
    assert (warning["rule"], warning["step"]) == ("no_success", step)
    for part in (
        f"0 of {rollouts * step} rollouts in {done}",
        "0 of 32 of the self-teacher",
        "larger model",
        "dataset",
    ):
        assert part in warning["message"]


def test_no_success_is_not_warned_of_where_something_succeeded_or_rewards_differ() -> None:
    events = barren()
    assert "no context to show, neither" in replayed(barren(answers=0))[2]["message"]
    late = [{**each, "success/rate": 0.0 if each["step"] < 12 else 0.05} for each in events]
    assert warnings(late) == [("no_success", 1), ("no_signal", 12), ("teacher", 12)]
    scored = [{"type": "eval", "step": 0, "pass@1": 0.1}, *events]
    assert [rule for rule, _ in warnings(scored)] == ["teacher", "no_signal"]
    graded = [{**each, "reward/mean": 0.3} for each in events]
    assert "no_success" not in dict(warnings(graded))
    assert "no_success" not in dict(warnings(events[1:]))  # without a probe


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"success/rate": 0.9, "entropy": 0.02, "length/mean": 10.0, "loss": 0.001, "grad/norm": 1e-4},  # it learned
        {"success/rate": 0.6, "length/mean": 90.0},  # longer answers are better ones
        {"entropy": 0.55, "length/mean": 55.0, "length/truncated": 0.09, "leakage/rate": 0.03, "score": 0.5},
        {"teacher/success": 0.8, "teacher/student": 0.9},  # the student needs no better teacher
        {"shift": 1.4},
        {"grad/norm": 1e-5, "loss": 0.01},
    ],
)
def test_a_healthy_stream_is_silent(changed: Mapping[str, Any]) -> None:
    assert warnings(stream(onset=ONSET, **changed)) == []


def test_more_than_a_third_truncated_from_the_start_is_warned_of_with_the_first_window() -> None:
    assert warnings(stream(onset=0, **{"length/truncated": 0.35})) == [("truncated", 3)]
    assert warnings(stream(onset=0, **{"length/truncated": 0.33})) == []


def test_small_steps_need_wider_windows() -> None:
    """With 4 rollouts a step, 3 steps are two hard problems and one easy one."""
    few = stream(steps=60, onset=40, rollouts=4, **{"length/truncated": 0.4})
    assert [rule for rule, _ in warnings(few)] == ["truncated"]
    assert warnings(few)[0][1] > 40 + 3


@given(st.integers(0, 30), st.sampled_from(FAILURES))
def test_a_resumed_run_warns_as_an_uninterrupted_one(cut: int, failure: tuple[str, Mapping[str, Any], Any]) -> None:
    events = stream(onset=ONSET, **failure[1])
    whole = replayed(events)
    before = json.loads(json.dumps(replayed(events[:cut])))
    history = History()
    for event in before:
        history.add(event)
    assert before + replayed(events[cut:], history) == whole


@pytest.mark.parametrize(("before", "now", "falls"), [(0.9, 0.85, False), (0.9, 0.5, True), (0.16, 0.0, False)])
def test_a_fall_needs_an_interval_without_zero_and_six_problems(before: float, now: float, falls: bool) -> None:
    history = History()
    for step, score in enumerate((0.1, before, now)):
        history.add(evaluation(step, score))
    assert (health.held_out(history) is not None) == falls


def test_the_best_of_many_evaluations_needs_a_larger_fall() -> None:
    """Chance alone spreads the scores of 20 evaluations over more than one pair's interval."""
    few, many = History(), History()
    for step, score in enumerate((0.1, 0.9, 0.7)):
        few.add(evaluation(step, score))
    for step, score in enumerate((0.1, *[0.8] * 20, 0.9, 0.7)):
        many.add(evaluation(step, score))
    assert health.held_out(few) is not None
    assert health.held_out(many) is None


def test_a_rollback_lets_the_same_fall_be_found_again() -> None:
    events = stream(onset=ONSET, score=0.2)
    rollback = {"type": "decline", "step": 12, "rule": "held_out", "action": "rollback"}
    at = events.index(next(each for each in events if each["type"] == "step" and each["step"] == 13))
    found = warnings([*events[:at], rollback, *events[at:]])
    assert found == [("held_out", 12), ("held_out", 15)]


def test_memory_of_a_long_run_is_bounded() -> None:
    history = History()
    for event in stream(steps=500):
        history.add(event)
    assert 2 * len(history.first) == len(history.last) == 2 * MOST_STEPS
    assert len(history.teacher) == history.teacher.maxlen


def test_events_of_other_types_and_older_versions_give_nothing() -> None:
    old = [{name: v for name, v in each.items() if "leakage" not in name and name != "rewards"} for each in stream()]
    strange = [{"type": "checkpoint", "step": 1}, {"type": "warning", "step": 1, "message": "m"}, {"step": 1}]
    assert not any(health.check(history, "eval") for history in [History()])
    history = History()
    for event in (*strange, *old):
        history.add(event)
    assert health.check(history, "step") == health.check(history, "eval") == {}
    assert history.warned == set()
    assert set(HEALTHY) >= {"leakage/rate"}


def test_student_interval_of_a_paired_difference_is_the_textbook_one() -> None:
    """Differences 1, 0, -1, ... of known variance: t(0.975, 9) = 2.262."""
    second = [[x] for x in (1.0, 0.0, -1.0, 2.0, 1.0, 0.0, 3.0, 1.0, 2.0, 1.0)]
    mean, (low, high), different = statistics.paired_student([[0.0]] * 10, second, confidence=0.95)
    assert (mean, different) == (1.0, 8)
    assert (high - low) / 2 == pytest.approx(2.262 * math.sqrt(12 / 9 / 10), rel=2e-3)
    assert all(math.isnan(end) for end in statistics.paired_student([[0.0]] * 3, [[1.0]] * 3, confidence=0.95)[1])
