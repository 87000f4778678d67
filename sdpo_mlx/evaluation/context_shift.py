"""How a teacher context shifts the log-probability of right and of wrong rollouts, where they part; nothing is sampled.

Two rollouts of one problem are equal up to some token. There, and after it, training moves the student towards the
self-teacher: a context that helps raises the right token above the wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdpo_mlx.backends.base import Policy
from sdpo_mlx.core import statistics
from sdpo_mlx.rl.distillation import Batch
from sdpo_mlx.rl.rollouts import logps_of
from sdpo_mlx.types import FloatArray, IntArray, RolloutGroup

RolloutKey = tuple[str, int]  # problem id, index of the rollout


@dataclass(frozen=True)
class Shift:
    """How a context changes the log-probability of right and wrong rollouts (nats), averaged by problem.

    `right` and `wrong` are of the first token at which two rollouts of a problem differ, `right_after` and
    `wrong_after` of all tokens from there on, by token. `difference` is right minus wrong at that first token, with
    its 95 % interval. Without a pair of rollouts all are NaN.
    """

    right: float
    wrong: float
    right_after: float
    wrong_after: float
    difference: float
    interval: statistics.Interval
    problems: int
    pairs: int


@dataclass
class ShiftMeter:
    """Measures shifts by the policy's `score`; what the student alone gives each rollout is computed once."""

    policy: Policy
    seed: int
    _student: dict[RolloutKey, FloatArray] = field(default_factory=dict)

    def measure(self, batch: Batch, groups: Sequence[RolloutGroup]) -> Shift:
        """Score both rollouts of each pair under the context of the wrong one, and without it."""
        pairs = parting_pairs(groups, batch, self.policy.info.context_length)
        rollouts = {(group.problem.id, i): each for group in groups for i, each in enumerate(group.rollouts)}
        keys = [key for pair in pairs for key in (pair.right, pair.wrong)]
        missing = [key for key in dict.fromkeys(keys) if key not in self._student]
        unscored = [rollouts[key] for key in missing]
        alone = logps_of(self.policy, "student", unscored, [rollout.prompt_ids for rollout in unscored])
        self._student |= dict(zip(missing, alone, strict=True))
        prompts = [pair.prompt for pair in pairs for _ in range(2)]
        helped = logps_of(self.policy, "teacher", [rollouts[key] for key in keys], prompts)
        shifts = [after - self._student[key] for key, after in zip(keys, helped, strict=True)]
        right: dict[str, list[FloatArray]] = {}
        wrong: dict[str, list[FloatArray]] = {}
        for pair, of_right, of_wrong in zip(pairs, shifts[::2], shifts[1::2], strict=True):
            right.setdefault(pair.right[0], []).append(of_right[pair.place :])
            wrong.setdefault(pair.right[0], []).append(of_wrong[pair.place :])
        return shift_of(right, wrong, self.seed)


@dataclass(frozen=True)
class PartingPair:
    """A right and a wrong rollout (problem id, index), their first different token, and the wrong one's context."""

    right: RolloutKey
    wrong: RolloutKey
    place: int
    prompt: IntArray


def parting_pairs(groups: Sequence[RolloutGroup], batch: Batch, context_length: int) -> list[PartingPair]:
    """Pair each wrong rollout that has a context with the first right one that this context does not show.

    Only answers of one turn. A pair of which one is the beginning of the other does not part.
    """
    prompts = {(s.problem_id, s.index): s.teacher_ids[: s.teacher_span[0]] for s in batch.samples if s.distil_weight}
    found = []
    for group in groups:
        name, rollouts = group.problem.id, group.rollouts
        single = [i for i, rollout in enumerate(rollouts) if not rollout.earlier and rollout.ids_T.size]
        right = [i for i in single if group.feedback[i].success]
        for i in single:
            if group.feedback[i].success or (name, i) not in prompts:
                continue
            shown = batch.contexts[name, i].demonstration
            other = next((j for j in right if shown is None or j != shown.source), None)
            if other is None or prompts[name, i].size + rollouts[other].ids_T.size > context_length:
                continue
            ours, theirs = rollouts[other].ids_T, rollouts[i].ids_T
            common = min(ours.size, theirs.size)
            different = np.flatnonzero(ours[:common] != theirs[:common])
            if different.size:
                found.append(PartingPair((name, other), (name, i), int(different[0]), prompts[name, i]))
    return found


def shift_of(right: Mapping[str, Sequence[FloatArray]], wrong: Mapping[str, Sequence[FloatArray]], seed: int) -> Shift:
    """Average shifts by problem; each array begins at the token at which its pair parts."""

    def rows(average: Callable[[FloatArray], Any]) -> list[list[list[float]]]:
        return [[[float(average(each)) for each in side[name]] for name in right] for side in (right, wrong)]

    first, rest = rows(lambda shifts: shifts[0]), rows(np.mean)
    difference, interval = statistics.paired(first[1], first[0], seed=seed)
    return Shift(
        right=statistics.average(first[0]),
        wrong=statistics.average(first[1]),
        right_after=statistics.average(rest[0]),
        wrong_after=statistics.average(rest[1]),
        difference=difference,
        interval=interval,
        problems=len(right),
        pairs=sum(map(len, right.values())),
    )
