"""What the report shows of a step besides its metrics: likeliest tokens, and the self-teacher's own success."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, zip_longest
from typing import Any

import numpy as np

from sdpo_mlx.backends.base import Policy, SamplingParams, Scores
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.rl.metrics import mean
from sdpo_mlx.rl.optimization import SampleKey
from sdpo_mlx.rl.rollouts import to_rollout
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.tasks.grading import Graders
from sdpo_mlx.types import DistillSample, Feedback, IntArray, RolloutGroup

TOP = 3
ROLLOUTS_PER_LOOK = 64  # two forward passes over one rollout in 64 cost under 3 % of a step
Candidates = list[list[list[Any]]]  # for each token: [text, probability], likeliest first


def due(step: int, count: int, rollouts: int) -> bool:
    """Return whether this step records candidates for `count` rollouts; the first step always does."""
    return count > 0 and step % -(-count * ROLLOUTS_PER_LOOK // rollouts) == 0


def candidates(
    policy: Policy, chat: Chat, samples: Sequence[DistillSample], count: int
) -> Mapping[SampleKey, dict[str, Candidates]]:
    """Return the `TOP` likeliest tokens of student and teacher at temperature 1.

    At most `count` samples, each of a different problem. Two forward passes; the policy does not change.
    """
    first = {sample.problem_id: sample for sample in reversed(samples) if sample.distil_weight}
    chosen = list(reversed(first.values()))[:count]
    if not chosen:
        return {}
    student = policy.score("student", [s.student_ids for s in chosen], [s.student_span for s in chosen], TOP)
    teacher = policy.score("teacher", [s.teacher_ids for s in chosen], [s.teacher_span for s in chosen], TOP)
    return {
        (sample.problem_id, sample.index, sample.turn): {"student": _texts(p, chat), "teacher": _texts(q, chat)}
        for sample, p, q in zip(chosen, student, teacher, strict=True)
    }


def _texts(scores: Scores, chat: Chat) -> Candidates:
    if scores.top_ids_TK is None or scores.top_logps_TK is None:
        return []
    found = []
    for ids_K, logps_K in zip(scores.top_ids_TK, scores.top_logps_TK, strict=True):
        order = np.argsort(-logps_K, kind="stable")
        found.append([[chat.reveal([int(ids_K[i])]), round(float(np.exp(logps_K[i])), 4)] for i in order])
    return found


def pieces(chat: Chat, ids_T: IntArray) -> list[str]:
    """Return each token's part of the text; joined they are the text, special tokens by name.

    A token that ends inside a character has an empty part. Tokens are decoded together with the one before, because
    some vocabularies drop a leading space.
    """
    found: list[str] = []
    start = end = 0
    for stop in range(1, ids_T.size + 1):
        before, after = chat.reveal(ids_T[start:end]), chat.reveal(ids_T[start:stop])
        if after.endswith("\ufffd") and stop < ids_T.size:
            found.append("")
            continue
        found.append(after[len(before) :])
        start, end = end, stop
    return found


def choose(
    groups: Sequence[RolloutGroup], samples: Sequence[DistillSample], task: Task, room: int, count: int
) -> list[tuple[RolloutGroup, DistillSample]]:
    """Return at most `count` samples whose teacher prompt has at most `room` tokens, each with its group.

    One of each problem first, then, if there are fewer problems than `count`, a second one of each, and so on.
    Empty for a task of several turns: later contexts contain what the student wrote in earlier turns.
    """
    if task.max_turns > 1:
        return []
    by_problem: dict[str, list[DistillSample]] = {group.problem.id: [] for group in groups}
    for sample in samples:
        if sample.distil_weight and sample.teacher_span[0] <= room:
            by_problem[sample.problem_id].append(sample)
    rounds = zip_longest(*(by_problem[group.problem.id] for group in groups))
    pairs = ((g, each) for turn in rounds for g, each in zip(groups, turn, strict=True) if each is not None)
    return list(islice(pairs, count))


def teacher_success(
    policy: Policy,
    task: Task,
    chat: Chat,
    chosen: Sequence[tuple[RolloutGroup, DistillSample]],
    sampling: SamplingParams,
    seed: int,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Sample the self-teacher from its contexts and the student from its prompts, and grade both.

    The student's rollouts are new ones with the same seeds: those of the batch decided which contexts there are, and
    where feedback is shown they failed. Returns `teacher/success` and, on the same problems, `teacher/student` (shares
    of 1), and `teacher/answers`, the number of problems where both were graded. The policy is left as it was. Raises
    KeyboardInterrupt when `interrupted()` turns true.
    """
    names = [sample.problem_id for _, sample in chosen]
    # The first of a problem has the seed that it had when there was one of each.
    rounds = [(derive(seed, name), names[:at].count(name)) for at, name in enumerate(names)]
    seeds = [[derive(first, again) if again else first] for first, again in rounds]
    graders = Graders(task)

    def successes(prompts: Sequence[IntArray]) -> list[float | None]:
        pending = {}
        for at, _, made in policy.generate(prompts, sampling, seeds, interrupted):
            rollout = to_rollout(chat, made, prompts[at], seeds[at][0])
            pending[at] = graders.submit(chosen[at][0].problem, rollout)
        graded = (graders.result(pending[at], interrupted) for at in range(len(prompts)))
        known = (each if isinstance(each, Feedback) and each.kind != "grader_error" else None for each in graded)
        return [float(each.success) if each else None for each in known]

    student = successes([sample.student_ids[: sample.student_span[0]] for _, sample in chosen])
    with teacher_weights(policy):
        teacher = successes([sample.teacher_ids[: sample.teacher_span[0]] for _, sample in chosen])
    both = [(a, b) for a, b in zip(teacher, student, strict=True) if a is not None and b is not None]
    return {
        "teacher/success": mean([right for right, _ in both]),
        "teacher/student": mean([right for _, right in both]),
        "teacher/answers": len(both),
    }


@contextmanager
def teacher_weights(policy: Policy) -> Iterator[None]:
    """Put the teacher's weights in the student's place inside the block."""
    state = policy.state()
    try:
        policy.load_student(state["teacher"])
        yield
    finally:
        policy.load_student(state["student"])
