"""What student and self-teacher held likeliest at each token of a few answers, for whoever looks at a run later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdpo_mlx.backends.base import Policy, Scores
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.rl.optimization import SampleKey
from sdpo_mlx.types import DistillSample, IntArray

TOP = 3
WORTH = 64  # sampled answers a look: two passes over one answer stay under 3 % of what a step costs
Candidates = list[list[list[Any]]]  # a token each: [text, probability], likeliest first


def due(step: int, count: int, rollouts: int) -> bool:
    """Whether a step of so many rollouts looks at `count` of them: the first does, small steps not every time."""
    return count > 0 and step % -(-count * WORTH // rollouts) == 0


def candidates(
    policy: Policy, chat: Chat, samples: Sequence[DistillSample], count: int
) -> Mapping[SampleKey, dict[str, Candidates]]:
    """The `TOP` likeliest tokens of both roles, at temperature 1, for at most `count` answers of different problems.

    Two forward passes without gradient; nothing of the policy changes.
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
    """Each token's part of the text, which they make up together; a token inside a character has none of it.

    Special tokens are named. Decoded beside the token before, since some vocabularies drop a leading space.
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
