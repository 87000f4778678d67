"""The verdict of a probe: properties of its rules, on made-up successes of student and self-teacher."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.config import Config, TeacherConfig
from sdpo_mlx.core.statistics import Interval
from sdpo_mlx.evaluation.compare import MIN_DIFFERENT, Pair
from sdpo_mlx.evaluation.context_shift import Shift
from sdpo_mlx.evaluation.probe import Context, ContextResult, Probe
from sdpo_mlx.evaluation.probe_verdict import ENOUGH_ROLLOUTS, USEFUL, enough_different, event, judge

NAN = math.nan
NO_SHIFT = Shift(NAN, NAN, NAN, NAN, NAN, Interval(NAN, NAN), 0, 0)
ROLLOUTS = 4
SHARES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


def result(student: list[float], teacher: list[float], name: str = "feedback", **more: Any) -> ContextResult:
    pairs = tuple(Pair(f"p{i}", "", *each) for i, each in enumerate(zip(student, teacher, strict=True)))
    context = Context(name, TeacherConfig(template=more.pop("template", None)))
    shift = more.pop("shift", NO_SHIFT)
    return ContextResult(context, pairs, frozenset(p.id for p in pairs), ROLLOUTS * len(pairs), 0, shift, 0)


def probed(student: list[float], *teachers: ContextResult | list[float], rollouts: int = ROLLOUTS) -> Probe:
    """A probe in which each problem's student succeeded in this share of its rollouts."""
    rows = {f"p{i}": [1.0] * round(rollouts * x) + [0.0] * round(rollouts * (1 - x)) for i, x in enumerate(student)}
    results = tuple(each if isinstance(each, ContextResult) else result(student, each) for each in teachers)
    return Probe(rows, rollouts, results, {}, 0, 0, 0)


def kind(probe: Probe) -> str:
    return judge(probe, Config()).kind


@given(st.integers(6, 40))
def test_self_teacher_that_solves_what_the_student_never_does_learns(n: int) -> None:
    conclusion = judge(probed([0.0] * n, [1.0] * n), Config())
    assert conclusion.kind == "learns"
    assert "solves 100 % where the student solves 0 %" in conclusion.sentence
    assert conclusion.settings["objective.kind"] == "auto"


@given(st.integers(1, 40), st.integers(1, 8))
def test_no_success_anywhere_concludes_only_from_enough_rollouts(n: int, rollouts: int) -> None:
    enough = n >= 8 and n * rollouts >= ENOUGH_ROLLOUTS
    probe = probed([0.0] * n, [0.0] * n, rollouts=rollouts)
    assert kind(probe) == ("does not learn" if enough else "undecided")
    assert kind(probed([0.0] * n, rollouts=rollouts)) == kind(probe)  # no context at all


def test_enough_rollouts_without_a_success_exclude_a_useful_gain() -> None:
    assert (1 - USEFUL) ** ENOUGH_ROLLOUTS <= 0.05 < (1 - USEFUL) ** (ENOUGH_ROLLOUTS - 1)


@given(st.lists(SHARES, min_size=8, max_size=32), st.lists(SHARES, min_size=8, max_size=32))
def test_verdict_agrees_with_the_paired_interval(student: list[float], teacher: list[float]) -> None:
    n = min(len(student), len(teacher))
    probe = probed(student[:n], teacher[:n])
    gain, found = probe.results[0].gain, kind(probe)
    assert (found == "learns") == (gain.difference > 0 and gain.significant)
    if found == "does not learn":
        assert gain.interval.high < USEFUL
    if found == "undecided":
        assert gain.interval.high >= USEFUL or n * ROLLOUTS < ENOUGH_ROLLOUTS or gain.interval.low > 0


@given(st.lists(SHARES, min_size=8, max_size=24), st.integers(1, 5))
def test_contexts_that_change_nothing_never_turn_a_verdict_into_learns(student: list[float], more: int) -> None:
    same = [result(student, student, f"c{i}") for i in range(more)]
    assert kind(probed(student, *same)) == "does not learn"
    helped = [min(1.0, each + 0.25) for each in student]
    alone, among = kind(probed(student, helped)), kind(probed(student, result(student, helped), *same))
    assert alone in (among, "learns")


def test_more_contexts_need_more_problems_that_differ() -> None:
    assert enough_different(1) == MIN_DIFFERENT
    assert [enough_different(n) for n in (2, 8, 24)] == [7, 9, 10]
    student, teacher = [0.0] * 12, [1.0] * 7 + [0.0] * 5
    first = result(student, teacher)
    assert kind(probed(student, first)) == "learns"
    assert kind(probed(student, first, *(result(student, student, f"c{i}") for i in range(7)))) == "undecided"


def test_context_that_raises_wrong_tokens_above_right_ones_does_not_count() -> None:
    student, teacher = [0.25] * 12, [0.75] * 12
    for interval, expected in ((Interval(-2.0, -0.5), "undecided"), (Interval(-1.0, 0.5), "learns")):
        shift = Shift(-1.0, 0.2, 0.0, 0.0, -1.2, interval, 6, 12)
        assert kind(probed(student, result(student, teacher, shift=shift))) == expected


def test_the_papers_context_is_kept_unless_another_is_better_by_more_than_chance() -> None:
    student = [0.0] * 16
    papers = result(student, [0.5, 0.75] * 8, "demonstration_or_feedback")
    for teacher, name in (([0.75, 0.5] * 8, "demonstration_or_feedback"), ([1.0] * 16, "feedback")):
        best = judge(probed(student, papers, result(student, teacher, "feedback")), Config()).best
        assert best is not None
        assert best.context.name == name


def test_reference_answers_are_recommended_only_if_nothing_else_helps() -> None:
    student, shown = [0.0] * 16, [1.0] * 16
    for teacher, name in (([0.5, 0.75] * 8, "feedback"), (student, "reference")):
        best = judge(probed(student, result(student, teacher), result(student, shown, "reference")), Config()).best
        assert best is not None
        assert best.context.name == name


def test_student_that_solves_nearly_all_has_little_left_to_learn() -> None:
    conclusion = judge(probed([1.0] * 16, [1.0] * 16), Config())
    assert conclusion.kind == "does not learn"
    assert "already solves 100 %" in conclusion.sentence


def test_undecided_names_how_many_problems_would_decide() -> None:
    conclusion = judge(probed([0.25] * 10, [1.0, 0.25] * 3 + [0.0] * 4), Config())
    assert conclusion.kind == "undecided"
    assert conclusion.problems is not None
    assert conclusion.problems > 10
    assert f"about {conclusion.problems} problems" in conclusion.sentence
    assert conclusion.settings["objective.kind"] == "auto"
    few = judge(probed([0.0] * 5, [1.0] * 5), Config())  # certain of these, but five are too few
    assert (few.kind, few.problems) == ("undecided", 6)


@pytest.mark.parametrize("objective", ["sdpo", "grpo", "hybrid", "auto"])
def test_recommended_settings_are_settings(objective: str) -> None:
    cfg = Config.model_validate({"objective": {"kind": objective}})
    student = [0.0] * 16
    for teacher in ([0.0] * 16, [1.0] * 16, [0.25, 0.0, 0.0, 0.0] * 4):
        for key, value in judge(probed(student, result(student, teacher, template="facts")), cfg).settings.items():
            section, _, name = key.partition(".")
            changed = getattr(cfg, section).model_copy(update={name: value})
            assert type(changed).model_validate(changed.model_dump()) == changed


def test_event_has_flat_names_with_and_without_a_context() -> None:
    for probe in (probed([0.0] * 8, [0.5] * 8), probed([0.0] * 8)):
        found = event(probe, judge(probe, Config()))
        assert {"verdict", "sentence", "n", "success", "low", "high"} <= set(found)
        assert ("difference" in found) == bool(probe.results)
        assert all(isinstance(value, int | float | str) for value in found.values())
