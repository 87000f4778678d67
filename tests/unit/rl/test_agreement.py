"""Objective `auto`: how far the self-teacher's credit agrees with the rewards, and the shares that follow from it."""

from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_groups import batch, chat, group

from sdpo_mlx.backends.base import Scores
from sdpo_mlx.config import ObjectiveConfig, TeacherConfig
from sdpo_mlx.rl.agreement import FEW, KINDS, PROBLEMS, WINDOW, extended, measure, shares
from sdpo_mlx.rl.distillation import Shares, distillation_batch
from sdpo_mlx.types import Exchange

AUTO = ObjectiveConfig(kind="auto")
RIGHT, WRONG = ("x = sort(x)", True, ""), ("x = reverse(x)", False, "line 1: wrong")
LENGTH = 4_096


class Crediting:
    """A policy whose self-teacher adds `credit[text]` to every token; contexts with a demonstration take `shown`."""

    def __init__(self, credit: dict[str, float], shown: dict[str, float] | None = None) -> None:
        self.credit, self.shown, self.scored = credit, shown or credit, 0
        self.info = type("Info", (), {"context_length": LENGTH})()

    def score(self, role: str, sequences: Any, spans: Any) -> list[Scores]:
        self.scored += len(sequences)
        return [self._scores(role, ids, start, stop) for ids, (start, stop) in zip(sequences, spans, strict=True)]

    def _scores(self, role: str, ids: Any, start: int, stop: int) -> Scores:
        table = self.shown if "Correct solution" in chat().decode(ids[:start]) else self.credit
        more = table[chat().decode(ids[start:stop])] if role == "teacher" else 0.0
        return Scores(np.linspace(-2.0, -1.0, stop - start) + more, None, None)


def measured(policy: Crediting, *groups: Any, length: int = LENGTH, **teacher: Any) -> dict[str, list[float]]:
    build = partial(distillation_batch, chat=chat(), context_length=length, seed=3)
    return measure(policy, groups, TeacherConfig(**teacher), build)  # type: ignore[arg-type]


def crediting(right: float, wrong: float) -> Crediting:
    return Crediting({RIGHT[0]: right, WRONG[0]: wrong})


@pytest.mark.parametrize(("right", "wrong", "expected"), [(0.1, -0.3, 1.0), (-0.3, 0.1, -1.0), (0.2, 0.2, 0.0)])
def test_agreement_is_the_order_of_right_and_wrong_credit(right: float, wrong: float, expected: float) -> None:
    found = measured(crediting(right, wrong), group(RIGHT, RIGHT, WRONG, WRONG, WRONG))
    assert found == {kind: [expected] for kind in KINDS}


def test_failures_with_different_rewards_are_compared_too() -> None:
    made = group(RIGHT, (WRONG[0], False, "half of it"), WRONG)  # the first is no success either
    rewards = [0.7, 0.4, 0.1]
    graded = [replace(f, reward=reward, success=False) for f, reward in zip(made.feedback, rewards, strict=True)]
    graded[0] = replace(graded[0], text="nearly")
    found = measured(crediting(1.0, 0.0), replace(made, feedback=tuple(graded)))
    assert found == {"demonstration": [], "feedback": [1.0]}


def test_demonstrations_and_feedback_are_measured_apart() -> None:
    policy = Crediting({RIGHT[0]: -1.0, WRONG[0]: 1.0}, {RIGHT[0]: 1.0, WRONG[0]: -1.0})
    assert measured(policy, group(RIGHT, RIGHT, WRONG)) == {"demonstration": [1.0], "feedback": [-1.0]}


@pytest.mark.parametrize(
    ("answers", "teacher", "expected"),
    [
        ((RIGHT, RIGHT), {}, (0, 0)),
        ((WRONG, WRONG), {}, (0, 0)),
        ((RIGHT, WRONG), {}, (0, 1)),  # the only success has no context of its own
        ((RIGHT, RIGHT, WRONG), {"demonstration": "off"}, (0, 1)),
        ((RIGHT, RIGHT, WRONG), {"feedback": False}, (1, 0)),
        ((RIGHT, RIGHT, (WRONG[0], False, "")), {}, (1, 0)),
        ((RIGHT, RIGHT, (*WRONG, "grader_error")), {}, (0, 0)),
    ],
)
def test_only_problems_with_right_and_wrong_rollouts_in_a_context_count(
    answers: Any, teacher: dict[str, Any], expected: tuple[int, int]
) -> None:
    found = measured(crediting(1.0, 0.0), group(*answers), **teacher)
    assert tuple(len(found[kind]) for kind in KINDS) == expected


def test_rollouts_scored_per_step_are_bounded() -> None:
    policy = crediting(0.0, 0.0)
    many = [group(*[RIGHT] * 8, *[WRONG] * 8, problem=f"p{n}") for n in range(2 * PROBLEMS)]
    assert [len(found) for found in measured(policy, *many).values()] == [PROBLEMS, PROBLEMS]
    assert policy.scored == (2 + 2 * 2) * PROBLEMS  # right and wrong, by the student and in contexts of two kinds


def test_pair_that_exceeds_the_context_length_is_not_scored() -> None:
    long = (" ".join(["x = sort(x)"] * 40), True, "")
    policy = Crediting({long[0]: 1.0, WRONG[0]: 0.0})
    found = group(long, WRONG, WRONG)
    assert measured(policy, found)["feedback"] == [1.0]
    policy.info.context_length = found.rollouts[0].prompt_ids.size + found.rollouts[0].ids_T.size
    assert measured(policy, found, length=policy.info.context_length)["feedback"] == []


@given(st.lists(st.floats(-1, 1), max_size=3 * WINDOW))
def test_share_of_distillation_is_what_the_last_agreements_show(found: list[float]) -> None:
    known = extended({}, {"feedback": found})
    share, last = shares(known).feedback, np.array(found[-WINDOW:])
    assert shares(known).demonstration == share  # nothing is known of it
    if not found:
        assert share == 1.0
        return
    error = last.std(ddof=1) / np.sqrt(last.size) if last.size > 1 else 0.0
    assert 0.0 <= share <= 1.0
    assert share == pytest.approx(max(0.0, last.mean() - error), abs=1e-12)


def test_few_agreements_of_one_kind_do_not_outweigh_those_of_the_other() -> None:
    probed = {"feedback": [0.0, 0.0, 0.0, -1.0]}
    assert shares(extended(probed, {"demonstration": [1.0]})).demonstration == 0.0
    assert shares(extended(probed, {"demonstration": [1.0] * FEW})) == Shares(demonstration=1.0, feedback=0.0)


@given(st.lists(st.lists(st.floats(-1, 1), max_size=5), min_size=1, max_size=20))
def test_agreements_of_steps_are_kept_in_order(steps: list[list[float]]) -> None:
    known: Any = {}
    for found in steps:
        known = extended(known, {"demonstration": found})
    assert known == {"demonstration": [*chain(*steps)][-WINDOW:], "feedback": []}


@pytest.mark.parametrize(("share", "kind"), [(1.0, "sdpo"), (0.0, "grpo")])
def test_whole_share_weighs_as_sdpo_and_none_as_grpo(share: float, kind: Any) -> None:
    groups = [group(RIGHT, RIGHT, WRONG, WRONG), group(WRONG, WRONG, problem="q"), group(RIGHT, WRONG, problem="r")]
    options = {"chat": chat(), "teacher": TeacherConfig(), "context_length": LENGTH, "seed": 3}
    ours = distillation_batch(groups, objective=AUTO, shares=Shares(share, share), **options)
    theirs = distillation_batch(groups, objective=ObjectiveConfig(kind=kind), **options)
    assert [vars(each).keys() for each in ours.samples] == [vars(each).keys() for each in theirs.samples]
    for mine, other in zip(ours.samples, theirs.samples, strict=True):
        for name, value in vars(other).items():
            np.testing.assert_array_equal(getattr(mine, name), value)
    assert (ours.skips, ours.contexts) == (theirs.skips, theirs.contexts)


def test_share_of_a_rollout_is_that_of_its_kind_of_context() -> None:
    groups = [group(RIGHT, RIGHT, WRONG), group(WRONG, problem="q")]
    options = {"chat": chat(), "teacher": TeacherConfig(), "context_length": LENGTH, "seed": 3}
    made = distillation_batch(groups, objective=AUTO, shares=Shares(0.75, 0.25), **options)
    weights = {(s.problem_id, s.index): (s.distil_weight, s.policy_weight) for s in made.samples}
    assert weights == {("p", i): (0.75, 0.25) for i in range(3)} | {("q", 0): (0.25, 0.0)}  # q has no advantage


def test_other_kinds_ignore_what_was_measured() -> None:
    groups = [group(RIGHT, RIGHT, WRONG)]
    assert [s.distil_weight for s in batch(groups).samples] == [1.0] * 3


def with_turn(found: Any, *episodes: int) -> Any:
    """The group with an earlier turn in these rollouts."""
    earlier = (Exchange(found.rollouts[0], "line 1: not yet"),)
    turns = [replace(each, earlier=earlier) if i in episodes else each for i, each in enumerate(found.rollouts)]
    return replace(found, rollouts=tuple(turns))


def test_of_an_episode_only_its_last_turn_after_a_demonstration_is_measured() -> None:
    found = group(RIGHT, RIGHT, WRONG)
    everywhere, in_the_wrong = with_turn(found, 0, 1, 2), with_turn(found, 2)
    assert measured(crediting(1.0, 0.0), everywhere) == {"demonstration": [1.0], "feedback": []}
    assert measured(crediting(1.0, 0.0), in_the_wrong) == {"demonstration": [1.0], "feedback": []}
