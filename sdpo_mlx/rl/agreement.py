"""How well the self-teacher's credit agrees with the rewards, for objective `auto`.

The credit of a rollout is the mean over its tokens of log q - log p: what the self-teacher adds to it. A self-teacher
that knows the task adds more to rollouts with a high reward than to those with a low one, of the same problem. Where it
does not, distilling it moves the student away from what the rewards say, and GRPO learns more. Contexts with a
demonstration and contexts with feedback alone are measured apart: a small model may follow the one and make nothing of
the other.

Before any group has two rewards, only the run's probe knows anything: whether the self-teacher solves more than the
student (`evaluation/probe.py`). Its answers count as the first agreements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, stdev

import numpy as np

from sdpo_mlx.backends.base import Policy
from sdpo_mlx.config import ObjectiveConfig, TeacherConfig
from sdpo_mlx.rl.distillation import Batch, Shares
from sdpo_mlx.rl.rollouts import logps_of
from sdpo_mlx.types import IntArray, Rollout, RolloutGroup

Agreements = Mapping[str, Sequence[float]]  # by kind of context, one for each measured problem, the latest last
PROBLEMS = 4  # measured per step, a pair of rollouts in each: at most 24 forward passes
WINDOW = 32  # agreements of each kind; the standard error of their mean is then at most 0.18
FEW = 4  # a single one has no standard error, and is +1 or -1 by chance
NONE: Agreements = {}
KINDS = ("demonstration", "feedback")  # what a context shows, as the fields of `Shares`
InPrompt = tuple[Rollout, IntArray]  # a rollout, and the teacher's prompt that it is scored under


def shares(agreements: Agreements) -> Shares:
    """Return what the last agreements of each kind show: their mean less its standard error, at least 0.

    So chance is not distilled. With fewer than `FEW` of a kind those of both count; without any, both shares are 1, as
    in objective `sdpo`.
    """
    own = {kind: agreements.get(kind, ()) for kind in KINDS}
    both = [*chain(*own.values())]
    return Shares(**{kind: _shown(found if len(found) >= FEW else both) for kind, found in own.items()})


def extended(agreements: Agreements, found: Agreements) -> dict[str, list[float]]:
    """Return the last `WINDOW` agreements of each kind, with those found in one more step."""
    return {kind: [*agreements.get(kind, ()), *found.get(kind, ())][-WINDOW:] for kind in KINDS}


def _shown(last: Sequence[float]) -> float:
    error = stdev(last) / math.sqrt(len(last)) if len(last) > 1 else 0.0
    return max(0.0, fmean(last) - error) if last else 1.0


@dataclass(frozen=True)
class _Pair:
    """A better and a worse rollout of a problem, and the prompts of the self-teacher that they are scored under."""

    kind: str
    better: InPrompt
    worse: InPrompt


def measure(
    policy: Policy, groups: Sequence[RolloutGroup], teacher: TeacherConfig, build: Callable[..., Batch]
) -> dict[str, list[float]]:
    """Return, by kind of context, whether the better rollout of a pair has more credit, in some problems of a step.

    1 is more, -1 less, 0 as much; one number for each measured problem. The pair has the highest and the lowest
    reward. With demonstrations each rollout has its own context. A success has no feedback, so with feedback both have
    the worse one's. `build(groups, teacher=..., objective=...)` makes contexts as training does. Nothing is changed.
    """
    mixed = [group for group in groups if len(set(_rewards(group).values())) > 1][:PROBLEMS]
    pairs: list[_Pair] = []
    for kind, cfg in ("demonstration", teacher), ("feedback", teacher.model_copy(update={"demonstration": "off"})):
        batch = build(mixed, teacher=cfg, objective=ObjectiveConfig(kind="sdpo"))
        found = [_pair(group, batch, kind, policy.info.context_length) for group in mixed]
        pairs += [pair for pair in found if pair is not None]
    scored = [each for pair in pairs for each in (pair.better, pair.worse)]
    alone = {id(rollout): rollout for rollout, _ in scored}  # often the same for both kinds
    of_student = logps_of(policy, "student", [*alone.values()], [rollout.prompt_ids for rollout in alone.values()])
    before = dict(zip(alone, of_student, strict=True))
    after = logps_of(policy, "teacher", [rollout for rollout, _ in scored], [prompt for _, prompt in scored])
    credit = [float(np.mean(q_T - before[id(each[0])])) for each, q_T in zip(scored, after, strict=True)]
    signs = [float(np.sign(better - worse)) for better, worse in zip(credit[::2], credit[1::2], strict=True)]
    return {kind: [sign for pair, sign in zip(pairs, signs, strict=True) if pair.kind == kind] for kind in KINDS}


def _rewards(group: RolloutGroup) -> dict[int, float]:
    """Return the rewards of the rollouts that were graded, by index."""
    graded = [i for i, rollout in enumerate(group.rollouts) if rollout.ids_T.size]
    return {i: group.feedback[i].reward for i in graded if group.feedback[i].kind != "grader_error"}


def _pair(group: RolloutGroup, batch: Batch, kind: str, context_length: int) -> _Pair | None:
    """Return the pair of a group, the first rollouts among equals; of an episode, its last turn."""
    name, rollouts, rewards = group.problem.id, group.rollouts, _rewards(group)
    own = [s for s in batch.samples if s.problem_id == name and s.turn == len(rollouts[s.index].earlier)]
    prompts = {s.index: s.teacher_ids[: s.teacher_span[0]] for s in own if kind_of(batch, name, s.index) == kind}
    if kind == "demonstration":
        first = [i for i in rewards if i in prompts]
    else:  # both under the worse one's prompt, which in an episode would hold another conversation
        first = [i for i in rewards if not rollouts[i].earlier]
    second = [i for i in first if i in prompts]
    if not second:
        return None
    better, worse = max(first, key=lambda i: (rewards[i], -i)), min(second, key=lambda i: (rewards[i], i))
    if not rewards[better] > rewards[worse]:
        return None
    prompt = prompts[better if kind == "demonstration" else worse]
    pair = _Pair(kind, (rollouts[better], prompt), (rollouts[worse], prompts[worse]))
    fits = all(ids.size + rollout.ids_T.size <= context_length for rollout, ids in (pair.better, pair.worse))
    return pair if fits else None


def kind_of(batch: Batch, problem: str, index: int) -> str:
    """Return what the context of a rollout shows, one of `KINDS`; an empty text if it has none."""
    context = batch.contexts.get((problem, index))
    return "" if context is None else "demonstration" if context.demonstration else "feedback"
