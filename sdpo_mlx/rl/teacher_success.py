"""Is the self-teacher better than the student? Its own answers, graded as the student's were (SDPO.md, section 8).

The teacher writes with its own weights, from the contexts that this step's answers learn from, one for a problem.
Beside its share of successes stands the student's on the same problems, whose answers were graded already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sdpo_mlx.backends.base import Policy, SamplingParams
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.tasks.base import Task, turns_of
from sdpo_mlx.tasks.grading import Graders
from sdpo_mlx.types import DistillSample, Feedback, Rollout, RolloutGroup


def teacher_success(
    policy: Policy,
    task: Task,
    chat: Chat,
    chosen: Sequence[tuple[RolloutGroup, DistillSample]],
    sampling: SamplingParams,
    seed: int,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """`teacher/success` and `teacher/student`, shares of 1, and `teacher/answers`, how many were graded.

    The policy is left as it was, whatever happens. Raises KeyboardInterrupt when `interrupted()` turns true.
    """
    graders = Graders(task)
    prompts = [sample.teacher_ids[: sample.teacher_span[0]] for _, sample in chosen]
    seeds = [[derive(seed, sample.problem_id)] for _, sample in chosen]
    with writing_as_teacher(policy):
        asked = []
        for at, _, made in policy.generate(prompts, sampling, seeds, interrupted):
            text = chat.decode(made.ids_T)
            rollout = Rollout(prompts[at], made.ids_T, made.logps_T, made.finish, seeds[at][0], text)
            asked.append((chosen[at][0], graders.submit(chosen[at][0].problem, rollout)))
    heard = [(group, graders.result(future, interrupted)) for group, future in asked]
    graded = [(group, word) for group, word in heard if isinstance(word, Feedback) and word.kind != "grader_error"]
    return {
        "teacher/success": _mean([word.success for _, word in graded]),
        "teacher/student": _mean([group.pass_rate for group, _ in graded]),
        "teacher/answers": len(graded),
    }


def choose(
    groups: Sequence[RolloutGroup], samples: Sequence[DistillSample], task: Task, room: int, count: int
) -> list[tuple[RolloutGroup, DistillSample]]:
    """At most `count` problems, each with its first answer that has a context of at most `room` tokens.

    None for a task of several turns: an episode's later contexts hold what the student said in the earlier ones.
    """
    if turns_of(task) > 1:
        return []
    firsts: dict[str, DistillSample] = {}
    for sample in samples:
        if sample.distil_weight and sample.teacher_span[0] <= room:
            firsts.setdefault(sample.problem_id, sample)
    return [(group, firsts[group.problem.id]) for group in groups if group.problem.id in firsts][:count]


@contextmanager
def writing_as_teacher(policy: Policy) -> Iterator[None]:
    """Inside, the student's place holds the teacher's weights."""
    state = policy.state()
    try:
        policy.load_student(state["teacher"])
        yield
    finally:
        policy.load_student(state["student"])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
