"""The rows of `rollouts/step-*.jsonl.gz`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdpo_mlx.rl.distillation import Batch
from sdpo_mlx.rl.optimization import LearnResult, SampleKey
from sdpo_mlx.types import FloatArray, Rollout, RolloutGroup


def records(
    groups: Sequence[RolloutGroup],
    batch: Batch,
    learned: LearnResult,
    more: Callable[[SampleKey, Rollout], Mapping[str, Any]] = lambda *_: {},
) -> list[dict[str, Any]]:
    """Return one row per rollout: prompt, answer, feedback, teacher context, divergence.

    `more` returns further fields of a turn. The row of an episode has its last turn, and under `earlier` the other
    turns with their replies.
    """
    rows = []
    for group in groups:
        for index, (rollout, feedback) in enumerate(zip(group.rollouts, group.feedback, strict=True)):
            context = batch.contexts.get((group.problem.id, index))
            turns = [
                {**_answer(turn, learned.divergence.get(key)), **more(key, turn)}
                for t, turn in enumerate(rollout.turns)
                for key in [(group.problem.id, index, t)]
            ]
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


def _answer(turn: Rollout, divergence: FloatArray | None) -> dict[str, Any]:
    return {
        "seed": turn.seed,
        "answer": turn.text,
        "ids": turn.ids_T.tolist(),
        "finish": turn.finish,
        "divergence": None if divergence is None else [round(float(x), 4) for x in divergence],
    }
