"""Loss and gradient of a learning step against the plain model on the CPU and the float64 objective."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from sdpo_mlx import objective
from sdpo_mlx.backends.loss_head import Gradient
from sdpo_mlx.backends.mlx.adapter import active, assign
from sdpo_mlx.backends.mlx.policy import MLXPolicy
from sdpo_mlx.backends.mlx.self_test.models import VOCABULARY, on_cpu
from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.types import DistillSample

SEGMENTS = (1, 2, 4, 8, 9, 40)  # tokens of a prompt: Metal has other kernels up to 8 queries
RESPONSES = (5, 11)
OBJECTIVE = ObjectiveConfig(kind="sdpo", support="full")
SMALL = 1e-2  # of the whole gradient: an array below is judged against this, its own digits are rounding

Arrays = dict[str, npt.NDArray[np.float64]]


class Gaps(NamedTuple):
    """Largest relative differences over all prompt lengths; `device` is against the same code on the CPU."""

    loss: float
    gradient: float
    device: float


def gaps(policy: MLXPolicy, segments: tuple[int, ...] = SEGMENTS) -> Gaps:
    """Compare a step on prompts of each length; what is not a number counts as infinite."""
    on_gpu, worst = mx.default_device() != mx.Device(mx.cpu), np.zeros(3)
    for tokens in segments:
        samples = step_samples(tokens)
        ours = step_gradient(policy, samples)
        with on_cpu():
            loss, grads = expected(policy, samples)
            same = difference(ours.grads, numpy(step_gradient(policy, samples).grads)) if on_gpu else 0.0
        found = [abs(ours.loss - loss) / abs(loss), difference(ours.grads, grads), same]
        worst = np.maximum(worst, np.nan_to_num(found, nan=np.inf))
    return Gaps(*map(float, worst))


def step_samples(tokens: int, responses: tuple[int, ...] = RESPONSES) -> list[DistillSample]:
    """Rollouts of one prompt of so many tokens, with a longer context for the teacher."""
    rng = np.random.default_rng(tokens)

    def ids(count: int) -> Any:
        return rng.integers(VOCABULARY, size=count).astype(np.int32)

    prompt, samples = ids(tokens), []
    for index, length in enumerate(responses):
        response, context = ids(length), ids(tokens + 7)
        samples.append(
            DistillSample(
                problem_id="self-test",
                index=index,
                student_ids=np.concatenate([prompt, response]),
                student_span=(tokens, tokens + length),
                teacher_ids=np.concatenate([context, response]),
                teacher_span=(context.size, context.size + length),
                rollout_logps_T=rng.normal(-6.0, 0.3, length).astype(np.float32),
            )
        )
    return samples


def step_gradient(policy: MLXPolicy, samples: list[DistillSample]) -> Gradient:
    """Loss and gradient of a step that is not taken."""
    with policy.limits(), policy.learning():
        found = policy.gradient(samples, OBJECTIVE, 1.0, lambda: None)
        mx.eval(found.grads)
        return found


def numpy(grads: Any) -> Arrays:
    """Return arrays of MLX in float64."""
    return {name: np.array(array.astype(mx.float32)).astype(np.float64) for name, array in grads.items()}


def expected(policy: MLXPolicy, samples: list[DistillSample]) -> tuple[float, Arrays]:
    """Return the loss by the float64 objective, and its gradient through the whole model without cache or parts."""
    student = [_logits(policy, policy.student, s.student_ids, s.student_span) for s in samples]
    teacher = [_logits(policy, policy.teacher, s.teacher_ids, s.teacher_span) for s in samples]
    ids, logps, mask = zip(*((s.ids_T, s.rollout_logps_T, np.ones(s.ids_T.size)) for s in samples), strict=True)
    student_BTV, teacher_BTV, ids_BT, logps_BT, mask_BT = map(_padded, (student, teacher, ids, logps, mask))
    loss, grad_BTV = objective.loss_and_grad(student_BTV, teacher_BTV, ids_BT, logps_BT, mask_BT, OBJECTIVE)
    names, whole = list(policy.student), policy.model.whole
    total: Arrays = {name: np.zeros(policy.student[name].shape) for name in names}
    for sample, grad_TV in zip(samples, grad_BTV, strict=True):
        start, stop = sample.student_span

        def run(*arrays: mx.array, sample: DistillSample = sample) -> list[mx.array]:
            assign(whole, dict(zip(names, arrays, strict=True)))
            begin, end = sample.student_span
            return [whole(mx.array(sample.student_ids)[None])[0, begin - 1 : end - 1].astype(mx.float32)]

        try:
            cotangent = mx.array(grad_TV[: stop - start].astype(np.float32))
            _, grads = mx.vjp(run, [policy.student[name] for name in names], [cotangent])
            mx.eval(grads)
        finally:
            assign(whole, policy.student)
        for name, grad in numpy(dict(zip(names, grads, strict=True))).items():
            total[name] += grad
    return loss, total


def _logits(policy: MLXPolicy, weights: Any, ids: Any, span: tuple[int, int]) -> Any:
    with active(policy.model.whole, weights, policy.student):
        return np.array(policy.model.whole(mx.array(ids)[None])[0, span[0] - 1 : span[1] - 1].astype(mx.float32))


def _padded(rows: Any) -> Any:
    longest = max(len(row) for row in rows)
    return np.stack([np.pad(row, [(0, longest - len(row)), *[(0, 0)] * (row.ndim - 1)]) for row in rows])


def difference(ours: Any, theirs: Arrays, small: float = SMALL) -> float:
    """Return the largest relative difference of an array; infinite if all of `theirs` is zero.

    An array whose norm is below `small` of the whole gradient's is judged against that.
    """
    mine = numpy(ours)
    whole = float(np.sqrt(sum((array**2).sum() for array in theirs.values())))
    if not whole:
        return float("inf")
    gaps = [
        np.linalg.norm(mine[name] - array) / max(float(np.linalg.norm(array)), small * whole)
        for name, array in theirs.items()
    ]
    return float(np.max(gaps))  # unlike Python's `max`, not blind to NaN
