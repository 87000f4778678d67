"""Policies on small random models, samples to learn from, and the slow, plain route to the same gradient."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from small_models import VOCABULARY, write_model
from temp_folders import new_folder

from sdpo_mlx import objective as oracle
from sdpo_mlx.config import AdapterConfig, MemoryConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from sdpo_mlx.types import DistillSample


@cache
def folder(architecture: str) -> Path:
    """A base model's folder, made once; `qwen3-4bit` is the quantized one."""
    return write_model(new_folder("model"), architecture.removesuffix("-4bit"), quantize=architecture.endswith("-4bit"))


def make_policy(architecture: str = "qwen3", *, teacher: str = "ema", seed: int | None = 1, **options: Any) -> Any:
    """A policy whose student and teacher differ (`seed` None: as attached); options go to adapter, train and memory."""
    from sdpo_mlx.backends.mlx.policy import MLXPolicy

    train = {key: options.pop(key) for key in list(options) if key in TrainConfig.model_fields}
    memory = MemoryConfig(**{key: options.pop(key) for key in list(options) if key in MemoryConfig.model_fields})
    adapter = AdapterConfig(**{"rank": 4, **options})
    policy = MLXPolicy(
        folder(architecture),
        ModelConfig(name=architecture, adapter=adapter),
        TeacherConfig(kind=teacher, update_rate=0.3),
        TrainConfig(**{"learning_rate": 1e-2, "micro_batch_tokens": 40, **train}),
        memory,
    )
    if seed is not None:
        stir(policy, seed)
    return policy


def stir(policy: Any, seed: int = 1, scale: float = 0.1) -> None:
    """Move student and teacher to different places near the start."""
    rng = np.random.default_rng(seed)

    def moved(arrays: Any) -> dict[str, np.ndarray]:
        return {n: (a + scale * rng.standard_normal(a.shape)).astype(np.float32) for n, a in arrays.items()}

    state = policy.state()
    policy.load_state({**state, "student": moved(state["student"]), "teacher": moved(state["teacher"])})


def make_samples(seed: int = 0, kind: str = "sdpo", vocabulary: int = VOCABULARY) -> list[DistillSample]:
    """Five rollouts: three of one long prompt, one of a one-token prompt, one of a middling; one not distilled."""
    rng = np.random.default_rng(seed)
    long, one, other = (rng.integers(vocabulary, size=n).astype(np.int32) for n in (13, 1, 6))
    plan = [("a", long, 5), ("a", long, 1), ("b", one, 7), ("a", long, 9), ("c", other, 4)]
    samples = []
    for index, (problem, prompt, length) in enumerate(plan):
        response = rng.integers(vocabulary, size=length).astype(np.int32)
        context = rng.integers(vocabulary, size=prompt.size + 4).astype(np.int32)
        distil, policy = {"sdpo": (1.0, 0.0), "grpo": (0.0, 1.0), "hybrid": (0.6, 0.4)}[kind]
        if index == 3:
            distil, policy = 0.0, 0.5  # no context: learns from its reward alone
        if index == 4:
            distil *= 1.7
        samples.append(
            DistillSample(
                problem_id=problem,
                index=index,
                student_ids=np.concatenate([prompt, response]),
                student_span=(prompt.size, prompt.size + length),
                teacher_ids=np.concatenate([context, response]),
                teacher_span=(context.size, context.size + length),
                rollout_logps_T=rng.normal(-3.0, 0.7, length).astype(np.float32),
                distil_weight=distil,
                policy_weight=policy,
                advantage=float(rng.normal()),
            )
        )
    return samples


def found(policy: Any, samples: list[DistillSample], objective: ObjectiveConfig, temperature: float = 1.0) -> Any:
    """The `Gradient` of a step that is then not taken."""
    kept: list[Any] = []
    take = policy._apply
    policy._apply = lambda gradient, *rest: (kept.append(gradient), take(gradient, *rest))[1]
    try:
        policy.learn(samples, objective, 0.0, temperature=temperature)
    finally:
        policy._apply = take
    return kept[0]


def plain_logits(policy: Any, weights: Any, ids: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    """The whole model on one sequence, no cache and no parts: logits (T, V) that predict the span.

    Asked again for the same sequence under the very same bytes of the model, a policy answers from memory.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from sdpo_mlx.backends.mlx.adapter import active

    with active(policy.model.whole, weights, policy.student):
        digest = sha256(repr((ids.tolist(), span)).encode())
        for _, array in tree_flatten(policy.model.whole.parameters()):
            digest.update(memoryview(array))
        known = vars(policy).setdefault("plain_logits", {})
        if (key := digest.digest()) not in known:
            logits = policy.model.whole(mx.array(ids)[None])[0, span[0] - 1 : span[1] - 1].astype(mx.float32)
            known[key] = np.array(logits)
            known[key].setflags(write=False)
    return known[key]


def teacher_logits(policy: Any, sample: DistillSample) -> np.ndarray:
    """What the configured teacher says about the response, in float64."""
    if not sample.teacher_ids.size:
        return np.zeros((sample.ids_T.size, policy.model.vocab_size))

    def under(weights: Any) -> np.ndarray:
        return np.array(plain_logits(policy, weights, sample.teacher_ids, sample.teacher_span)).astype(np.float64)

    if policy.teacher_cfg.kind != "trust_region":
        return under(policy.teacher)
    rate = policy.teacher_cfg.update_rate
    return (1 - rate) * under(policy.teacher) + rate * under(policy.student)


def expected(
    policy: Any, samples: list[DistillSample], objective: ObjectiveConfig, temperature: float = 1.0
) -> tuple[float, dict[str, np.ndarray]]:
    """Loss by the float64 oracle, gradient by the plain model's own `vjp` of the oracle's dL/dlogits."""
    import mlx.core as mx

    from sdpo_mlx.backends.mlx.adapter import assign

    student = [np.array(plain_logits(policy, policy.student, s.student_ids, s.student_span)) for s in samples]
    teacher = [teacher_logits(policy, s) for s in samples]
    ids, logps = [s.ids_T for s in samples], [s.rollout_logps_T for s in samples]
    loss, grad_BTV = oracle.loss_and_grad(
        *map(_padded, (student, teacher, ids, logps, [np.ones(s.ids_T.size) for s in samples])),
        objective,
        temperature,
        advantages_B=[s.advantage for s in samples],
        distil_weights_B=[s.distil_weight for s in samples],
        policy_weights_B=[s.policy_weight for s in samples],
        token_weights_BT=_padded([s.weights_T for s in samples]),
    )
    names = list(policy.student)
    total = {name: np.zeros(policy.student[name].shape) for name in names}
    for sample, grad_TV in zip(samples, grad_BTV, strict=True):
        start, stop = sample.student_span

        def run(*arrays: mx.array, ids: Any = sample.student_ids, start: int = start, stop: int = stop) -> Any:
            assign(policy.model.whole, dict(zip(names, arrays, strict=True)))
            return policy.model.whole(mx.array(ids)[None])[0, start - 1 : stop - 1]

        cotangent = mx.array(grad_TV[: stop - start].astype(np.float32))
        _, grads = mx.vjp(run, [policy.student[name] for name in names], [cotangent])
        mx.eval(grads)
        for name, grad in zip(names, grads, strict=True):
            total[name] += np.array(grad).astype(np.float64)
    assign(policy.model.whole, policy.student)
    return loss, total


def term_size(policy: Any, samples: list[DistillSample], objective: ObjectiveConfig, temperature: float) -> float:
    """Mean size of a token's own term in the loss: what rounding is relative to where signed terms cancel."""
    sizes = []
    for sample in samples:
        logits = np.array(plain_logits(policy, policy.student, sample.student_ids, sample.student_span))
        arrays = (logits, teacher_logits(policy, sample), sample.ids_T, sample.rollout_logps_T)
        weights = {"distil_weights_B": [sample.distil_weight], "policy_weights_B": [sample.policy_weight]}
        for mask in np.eye(sample.ids_T.size):
            batch = [np.asarray(array)[None] for array in (*arrays, mask)]
            loss, _ = oracle.loss_and_grad(*batch, objective, temperature, advantages_B=[sample.advantage], **weights)
            sizes.append(abs(loss))
    return float(np.mean(sizes))


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    longest = max(len(row) for row in rows)
    return np.stack([np.pad(row, [(0, longest - len(row)), *[(0, 0)] * (row.ndim - 1)]) for row in rows])


def assert_same_gradient(ours: Any, theirs: Any, relative: float = 1e-4) -> None:
    """Every array, and all together: relative error, and a cosine of at least 0.9999."""
    whole = np.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in theirs.values()))
    assert whole > 0
    for name, right in theirs.items():
        mine = np.asarray(ours[name], np.float64)
        scale = np.linalg.norm(right)
        gap = np.linalg.norm(mine - right)
        # A factor whose own gradient is rounding noise is judged against the whole gradient.
        assert gap <= relative * max(scale, 1e-3 * whole), (name, gap, scale, whole)
        if scale > 1e-3 * whole:
            assert (mine * right).sum() / (np.linalg.norm(mine) * scale) >= 0.9999, name


def rounding(policy: Any, samples: list[DistillSample], objective: ObjectiveConfig, grads: Any) -> float:
    """How far the gradient moves, relative and at the worst array, where each weight moves by its last bit.

    No two orders of summation can be asked to agree better than that; the policy is spoilt by it.
    """
    import mlx.core as mx
    from mlx.utils import tree_map

    rng = np.random.default_rng(0)

    def moved(array: Any) -> Any:
        if array.dtype != mx.float32:
            return array
        return array * (1 + mx.array((2.0**-23 * rng.choice([-1, 1], size=array.shape)).astype(np.float32)))

    policy.model.whole.update(tree_map(moved, policy.model.whole.parameters()))
    policy.student = {name: moved(array) for name, array in policy.student.items()}
    whole = np.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in grads.values()))
    found_ = found(policy, samples, objective).grads
    gaps = {
        name: np.linalg.norm(np.asarray(found_[name], np.float64) - np.asarray(g, np.float64))
        for name, g in grads.items()
    }
    return float(max(gap / max(np.linalg.norm(grads[name]), 1e-3 * whole) for name, gap in gaps.items()))


def bytes_of(policy: Any) -> dict[str, bytes]:
    """Student, teacher and optimizer, and what stands in the model, byte for byte."""
    from mlx.utils import tree_flatten

    state = policy.state()
    kept = {f"{part}/{name}": array.tobytes() for part, arrays in state.items() for name, array in arrays.items()}
    live = dict(tree_flatten(policy.model.whole.parameters()))
    return kept | {f"model/{name}": np.array(live[name]).tobytes() for name in policy.student}
