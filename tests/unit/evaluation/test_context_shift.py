"""Shifts of log-probability: where two rollouts part, what is averaged, and that both backends agree."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from backend_pairs import make_pair
from requirements import needs_torch
from small_models import VOCABULARY

from sdpo_mlx.backends.base import Scores
from sdpo_mlx.evaluation.context_shift import ShiftMeter, parting_pairs
from sdpo_mlx.rl.distillation import Batch
from sdpo_mlx.types import Demonstration, DistillSample, Feedback, Problem, Rollout, RolloutGroup, TeacherContext

QUESTION = np.array([1, 2, 3], np.int32)
CONTEXT = np.array([4, 5, 6, 7, 8], np.int32)
MESSAGES = ({"role": "user", "content": "?"},)


def rollout(*ids: int) -> Rollout:
    tokens = np.array(ids, np.int32)
    return Rollout(QUESTION, tokens, np.zeros(tokens.size, np.float32), "stop", 0, "")


def group(name: str, *answers: tuple[bool, tuple[int, ...]]) -> RolloutGroup:
    feedback = tuple(Feedback(float(good), good, "", "pass" if good else "wrong") for good, _ in answers)
    return RolloutGroup(Problem(name, MESSAGES), tuple(rollout(*ids) for _, ids in answers), feedback)


def contexts_of(*groups: RolloutGroup, sources: dict[tuple[str, int], int] | None = None) -> Batch:
    """A batch in which every rollout has the same context, with the demonstrations of `sources`."""
    samples, contexts = [], {}
    for each in groups:
        for i, made in enumerate(each.rollouts):
            student, teacher = (np.concatenate([prompt, made.ids_T]) for prompt in (QUESTION, CONTEXT))
            spans = (QUESTION.size, student.size), (CONTEXT.size, teacher.size)
            samples.append(DistillSample(each.problem.id, i, student, spans[0], teacher, spans[1], made.logps_T))
            source = (sources or {}).get((each.problem.id, i))
            shown = None if source is None else Demonstration("", source)
            contexts[each.problem.id, i] = TeacherContext(MESSAGES, shown, None)
    return Batch(tuple(samples), contexts, ())


def meter(shifts: dict[tuple[int, ...], list[float]]) -> ShiftMeter:
    """A meter on a policy whose teacher adds these to the student's log-probs, by rollout."""

    def score(role: str, sequences: Any, spans: Any, top_k: int = 0) -> list[Scores]:
        found = []
        for ids, (start, stop) in zip(sequences, spans, strict=True):
            response = tuple(int(i) for i in ids[start:stop])
            prompt = QUESTION if role == "student" else CONTEXT
            assert ids[:start].tolist() == prompt.tolist()
            base = np.full(len(response), -1.0, np.float32)
            found.append(Scores(base + (np.float32(shifts[response]) if role == "teacher" else 0), None, None))
        return found

    policy: Any = SimpleNamespace(score=score, info=SimpleNamespace(context_length=64))
    return ShiftMeter(policy, 0)


def test_shifts_count_from_the_token_at_which_right_and_wrong_part() -> None:
    first = group("a", (True, (9, 9, 1, 1)), (False, (9, 9, 2, 3, 0)))
    second = group("b", (False, (7, 0)), (True, (8, 0)))
    shifts = {
        (9, 9, 1, 1): [50.0, 50.0, 1.0, 0.0],
        (9, 9, 2, 3, 0): [50.0, 50.0, -2.0, -1.0, 0.0],
        (8, 0): [2.0, 1.0],
        (7, 0): [0.0, -1.0],
    }
    found = meter(shifts).measure(contexts_of(first, second), [first, second])
    assert (found.right, found.wrong) == (1.5, -1.0)
    assert (found.right_after, found.wrong_after) == (1.0, -0.75)
    assert found.difference == 2.5
    assert (found.problems, found.pairs) == (2, 2)
    assert found.interval.low <= 2.5 <= found.interval.high


def test_pairs_leave_out_the_shown_rollout_prefixes_and_long_ones() -> None:
    made = group("a", (True, (1, 2)), (False, (1, 3)), (True, (1, 4, 5)), (False, (1, 2, 6)))
    batch = contexts_of(made, sources={("a", 1): 0})
    found = [(pair.right[1], pair.wrong[1], pair.place) for pair in parting_pairs([made], batch, 64)]
    # Rollout 1 is shown rollout 0; rollout 0 is the beginning of rollout 3.
    assert found == [(2, 1, 1)]
    assert parting_pairs([made], batch, CONTEXT.size + 2) == []


def test_without_a_right_and_a_wrong_rollout_there_is_no_shift() -> None:
    made = group("a", (False, (1, 2)), (False, (1, 3)))
    found = meter({}).measure(contexts_of(made), [made])
    assert (found.problems, found.pairs) == (0, 0)
    assert all(math.isnan(value) for value in (found.right, found.wrong, found.difference, *found.interval))


def random_groups() -> list[RolloutGroup]:
    rng = np.random.default_rng(3)
    answers = [[tuple(int(t) for t in rng.integers(VOCABULARY, size=6)) for _ in range(4)] for _ in range(3)]
    return [group(f"p{i}", *zip((True, False, False, True), row, strict=True)) for i, row in enumerate(answers)]


@needs_torch
@pytest.mark.parametrize("teacher", ["ema", "trust_region"])
def test_both_backends_agree_on_shifts(teacher: str) -> None:
    groups = random_groups()
    ours, theirs = (ShiftMeter(p, 0).measure(contexts_of(*groups), groups) for p in make_pair(teacher=teacher))
    names = ("right", "wrong", "right_after", "wrong_after", "difference")
    assert [getattr(theirs, name) for name in names] == pytest.approx([getattr(ours, name) for name in names], abs=1e-4)
    assert ours.pairs == theirs.pairs == 6
    assert min(abs(getattr(ours, name)) for name in names) > 1e-3  # the agreement is not that of zeros
