"""The rows of `rollouts/step-*.jsonl.gz`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.rl.diagnostics import Candidates, pieces
from sdpo_mlx.rl.distillation import Batch
from sdpo_mlx.rl.optimization import LearnResult, SampleKey
from sdpo_mlx.types import RolloutGroup


def records(
    groups: Sequence[RolloutGroup],
    batch: Batch,
    learned: LearnResult,
    chat: Chat,
    candidates: Mapping[SampleKey, Mapping[str, Candidates]] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Return one row per rollout: prompt, answer, feedback, teacher context, divergence.

    The row of an episode has its last turn, and under `earlier` the other turns with their replies.
    """
    rows = []
    for group in groups:
        for index, (rollout, feedback) in enumerate(zip(group.rollouts, group.feedback, strict=True)):
            context = batch.contexts.get((group.problem.id, index))
            turns = []
            for at, turn in enumerate(rollout.turns):
                key = group.problem.id, index, at
                divergence, found = learned.divergence.get(key), candidates.get(key)
                turns.append(
                    {
                        "seed": turn.seed,
                        "answer": turn.text,
                        "ids": turn.ids_T.tolist(),
                        "finish": turn.finish,
                        "divergence": None if divergence is None else [round(float(x), 4) for x in divergence],
                        "pieces": pieces(chat, turn.ids_T),
                        **({"candidates": found} if found else {}),
                    }
                )
            earlier = [
                {**turn, "reply": exchange.reply} for turn, exchange in zip(turns, rollout.earlier, strict=False)
            ]
            rows.append(
                {
                    "problem": group.problem.id,
                    "index": index,
                    "prompt": list(group.problem.messages),
                    **({"earlier": earlier} if earlier else {}),
                    **turns[-1],
                    "reward": feedback.reward,
                    "success": feedback.success,
                    "kind": feedback.kind,
                    "feedback": feedback.text,
                    "teacher": list(context.messages) if context else None,
                }
            )
    return rows
