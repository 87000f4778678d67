"""Optimizer steps of one rollout batch: whole problems in each, one set of figures, the teacher once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_policies import make_samples

from sdpo_mlx.backends.base import Scores, Update
from sdpo_mlx.config import Config, ObjectiveConfig
from sdpo_mlx.objective import importance_weight
from sdpo_mlx.rl.optimization import combine, learn, minibatches
from sdpo_mlx.types import DistillSample

SAMPLE = make_samples()[0]
GOOD = Update(
    applied=True,
    reason="",
    loss=1.0,
    divergence=2.0,
    entropy=3.0,
    importance_mean=1.0,
    importance_clipped=0.5,
    grad_norm=4.0,
    tokens=10,
    divergence_T=(np.zeros(2, np.float32),),
    teacher_seconds=0.25,
)
NONE = replace(GOOD, applied=False, reason="no_signal", tokens=0, divergence_T=(), loss=99.0)
BAD = replace(GOOD, applied=False, reason="non_finite", tokens=30, non_finite=("b", "a"), loss=3.0)


def samples_of(problems: Sequence[str]) -> list[DistillSample]:
    return [replace(SAMPLE, problem_id=name, index=i) for i, name in enumerate(problems)]


class Scripted:
    """A policy that answers with given updates and writes down what it was asked."""

    def __init__(self, *updates: Update) -> None:
        self.updates, self.calls, self.moved = list(updates), [], 0

    def learn(self, samples: Any, objective: Any, learning_rate: float, **options: Any) -> Update:
        if options["interrupted"]():
            raise KeyboardInterrupt
        self.calls.append((samples, learning_rate, options["temperature"]))
        return replace(self.updates.pop(0), divergence_T=tuple(np.full(1, s.index, np.float32) for s in samples))

    def update_teacher(self, cfg: Any) -> None:
        self.moved += 1


def config(parts: int = 1) -> Config:
    return Config.model_validate(
        {
            "train": {"updates_per_batch": parts, "warmup_steps": 1, "learning_rate": 0.5},
            "rollout": {"temperature": 0.7},
        }
    )


def learnt(policy: Scripted, problems: Sequence[str], parts: int = 1, interrupted: Any = lambda: False) -> Any:
    return learn(policy, samples_of(problems), config(parts), 0, interrupted)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdefg"), max_size=30), st.integers(1, 9))
def test_minibatches_hold_whole_problems_and_every_sample_once(problems: list[str], count: int) -> None:
    samples = samples_of(problems)
    parts = minibatches(samples, count)
    names = [{s.problem_id for s in part} for part in parts]
    assert sum(map(len, names)) == len(set(problems))
    assert sorted(s.index for part in parts for s in part) == list(range(len(samples)))
    assert len(parts) == min(count, len(set(problems)))
    assert not parts or max(map(len, names)) - min(map(len, names)) <= 1
    assert all([s.index for s in part] == sorted(s.index for s in part) for part in parts)


def test_combining_weights_means_by_tokens_and_adds_the_rest() -> None:
    found = combine([GOOD, NONE, BAD])
    assert found is not None
    assert (found.loss, found.tokens) == (pytest.approx((1.0 * 10 + 3.0 * 30) / 40), 40)
    assert (found.applied, found.reason, found.non_finite) == (True, "non_finite", ("b", "a"))
    assert (found.teacher_seconds, len(found.divergence_T)) == (0.5, 2)


def test_combining_nothing_gives_nothing() -> None:
    assert combine([]) is None
    assert combine([NONE, NONE]) is None


def test_an_update_alone_is_itself() -> None:
    assert combine([BAD]) == BAD


def test_each_part_is_learnt_and_the_teacher_moves_once() -> None:
    policy = Scripted(GOOD, GOOD)
    found = learnt(policy, "abcab", parts=2)
    assert [[s.problem_id for s in samples] for samples, *_ in policy.calls] == [["a", "c", "a"], ["b", "b"]]
    assert [call[1:] for call in policy.calls] == [(0.25, 0.7)] * 2
    assert policy.moved == 1
    assert {place: float(array[0]) for place, array in found.divergence.items()} == {
        ("a", 0, 0): 0,
        ("b", 1, 0): 1,
        ("c", 2, 0): 2,
        ("a", 3, 0): 3,
        ("b", 4, 0): 4,
    }


@pytest.mark.parametrize(("updates", "moved"), [((NONE, BAD), 0), ((GOOD, BAD), 1), ((BAD, GOOD), 1)])
def test_the_teacher_stays_where_no_step_was_taken(updates: tuple[Update, ...], moved: int) -> None:
    policy = Scripted(*updates)
    learnt(policy, "ab", parts=2)
    assert policy.moved == moved


def test_nothing_to_learn_asks_nobody() -> None:
    policy = Scripted()
    assert learnt(policy, "").update is None
    assert (policy.calls, policy.moved) == ([], 0)


def test_an_interruption_never_falls_between_two_steps() -> None:
    with pytest.raises(KeyboardInterrupt):
        learnt(Scripted(GOOD, GOOD), "ab", parts=2, interrupted=lambda: True)
    policy = Scripted(GOOD, GOOD)
    learnt(policy, "ab", parts=2, interrupted=lambda: bool(policy.calls))
    assert len(policy.calls) == 2


def test_reference_importance_is_two_factors_each_with_the_maximum() -> None:
    before, current = SAMPLE.rollout_logps_T + np.float32(1.0), SAMPLE.rollout_logps_T + np.float32(1.2)

    class Scored(Scripted):
        def score(self, role: Any, sequences: Any, spans: Any, temperature: float) -> list[Scores]:
            assert (role, temperature) == ("student", 0.7)
            return [Scores(before, None, None) for _ in sequences]

    policy, cfg = Scored(GOOD, GOOD), config(2)
    cfg = cfg.model_copy(update={"objective": ObjectiveConfig(importance="reference")})
    learn(policy, samples_of("ab"), cfg, 0, lambda: False)  # type: ignore[arg-type]
    for (sample,), *_ in policy.calls:
        weights = sample.weights_T * importance_weight(current, sample.rollout_logps_T, cfg.objective)
        # e^1 is above the maximum of 2, e^0.2 is not; one ratio would be at most 2.
        np.testing.assert_allclose(weights, 2 * np.exp(0.2), rtol=1e-5)
