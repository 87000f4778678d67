"""Leakage: answers that repeat what only the self-teacher reads, its feedback or the frame around it.

The student never sees a teacher context, so it has no reason to write "The answer is not a JSON object". It does once
it imitates a teacher that talks about its context.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sdpo_mlx.config import TeacherConfig
from sdpo_mlx.rl.metrics import mean
from sdpo_mlx.teacher import teacher_messages
from sdpo_mlx.types import RolloutGroup

# Words in a row that count as a quotation: 4 occur by chance in short feedback about short answers, and the closing
# line of the paper's context has 5.
PHRASE = 5
# Letters only: numbers and operators of a failing test are no quotation. Chinese and Japanese have no spaces.
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+")

Phrases = set[tuple[str, ...]]


def leakage(groups: Sequence[RolloutGroup], teacher: TeacherConfig) -> float:
    """Return the share of rollouts with a phrase of this step's feedback or of the context's frame; NaN without any.

    Not counted: phrases of the problem and the environment's replies, those that a feedback quotes from its own
    rollout, and, as for feedback, those of right answers, since feedback may show what is right. Linear in the text.
    """
    frame = phrases([teacher_messages([{"role": "user", "content": ""}], "", "", "", teacher)[-1]["content"]])
    spoken = [[phrases(rollout.answers) for rollout in group.rollouts] for group in groups]
    feedback = Phrases()
    for group, answers in zip(groups, spoken, strict=True):
        for each, answer in zip(group.feedback, answers, strict=True):
            if each.kind != "grader_error":
                feedback |= phrases([each.text]) - answer
    leaked = []
    for group, answers in zip(groups, spoken, strict=True):
        right = Phrases().union(*(a for a, each in zip(answers, group.feedback, strict=True) if each.success))
        right |= phrases([group.problem.reference or ""])
        shown = phrases(message["content"] for message in group.problem.messages)
        for rollout, answer in zip(group.rollouts, answers, strict=True):
            own = answer - shown - phrases(exchange.reply for exchange in rollout.earlier)
            leaked.append(not (own.isdisjoint(frame) and (own - right).isdisjoint(feedback)))
    return mean(leaked)


def phrases(texts: Iterable[str]) -> Phrases:
    """Return every run of `PHRASE` words of each text."""
    found = Phrases()
    for text in texts:
        words = _WORDS.findall(text.lower())
        found.update(zip(*(words[at:] for at in range(PHRASE)), strict=False))
    return found
