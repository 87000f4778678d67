"""Loss and gradient of a step on torch by the slow, plain route: the whole model, autograd, the float64 oracle."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdpo_mlx import objective as oracle
from sdpo_mlx.config import ObjectiveConfig


def whole_logits(policy: Any, ids: np.ndarray, span: tuple[int, int]) -> Any:
    """The whole model on one sequence: logits (T, V) that predict the span."""
    import torch

    rows = torch.from_numpy(ids.astype(np.int64))[None].to(policy.model.device)
    return policy.model.whole(input_ids=rows, use_cache=False).logits[0, span[0] - 1 : span[1] - 1].float()


def expected(policy: Any, samples: list[Any], objective: ObjectiveConfig) -> tuple[float, dict[str, np.ndarray]]:
    """Loss by the float64 oracle, gradient by autograd through the whole model, one sequence after the other."""
    import torch

    from sdpo_mlx.backends.torch.adapter import to_numpy

    def padded(rows: list[np.ndarray]) -> np.ndarray:
        longest = max(map(len, rows))
        return np.stack([np.pad(row, [(0, longest - len(row)), *[(0, 0)] * (row.ndim - 1)]) for row in rows])

    student = [whole_logits(policy, s.student_ids, s.student_span) for s in samples]
    with torch.no_grad(), policy.active(policy.teacher):
        teacher = [whole_logits(policy, s.teacher_ids, s.teacher_span).cpu().numpy() for s in samples]
    loss, grad_BTV = oracle.loss_and_grad(
        padded([each.detach().cpu().numpy() for each in student]),
        padded(teacher),
        padded([s.ids_T for s in samples]),
        padded([s.rollout_logps_T for s in samples]),
        padded([np.ones(s.ids_T.size) for s in samples]),
        objective,
        1.0,
        advantages_B=[s.advantage for s in samples],
        distil_weights_B=[s.distil_weight for s in samples],
        policy_weights_B=[s.policy_weight for s in samples],
    )
    names, total = list(policy.parameters), {}
    cotangents = [
        torch.from_numpy(g[: each.shape[0]].astype(np.float32)).to(each)
        for g, each in zip(grad_BTV, student, strict=True)
    ]
    found = torch.autograd.grad(student, [policy.parameters[n] for n in names], cotangents, allow_unused=True)
    for name, grad in zip(names, found, strict=True):
        total[name] = torch.zeros_like(policy.parameters[name]) if grad is None else grad
    return loss, to_numpy(total)
