"""Promise 17: loss and gradient of a step are the same on MLX, on torch and by the float64 oracle.

The oracle's gradient goes through the plain model's own `vjp`; without torch, MLX alone is held against it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from backend_pairs import BOTH, check_step, make_pair_where_possible
from loss_cases import AGGREGATIONS, CASES, SUPPORTS, TEACHERS
from small_policies import found, make_samples

from sdpo_mlx.config import Config, ObjectiveConfig, RolloutConfig
from sdpo_mlx.rl.optimization import before_first_update

pytest.importorskip("mlx.core")
PAIRS: dict[str, Any] = {}


def pair(architecture: str, teacher: str) -> tuple[Any, Any]:
    """One pair of policies an architecture; its teacher's kind is set by each test."""
    if architecture not in PAIRS:
        PAIRS[architecture] = make_pair_where_possible(architecture)
    for policy in filter(None, PAIRS[architecture]):
        policy.teacher_cfg = policy.teacher_cfg.model_copy(update={"kind": teacher})
    return PAIRS[architecture]


@pytest.mark.parametrize(("settings", "teacher"), CASES)
def test_step_equals_oracle_on_both_backends_for_every_loss(settings: dict[str, Any], teacher: str) -> None:
    check_step(*pair("qwen3", teacher), make_samples(3, settings["kind"]), ObjectiveConfig(**settings), 0.8)


def test_step_equals_oracle_on_both_backends_with_weighted_tokens_and_the_dual_clip() -> None:
    generator = np.random.default_rng(0)
    samples = [
        replace(
            s, advantage=-abs(s.advantage), token_weights_T=generator.uniform(0.2, 2, s.ids_T.size).astype(np.float32)
        )
        for s in make_samples(3, "hybrid")
    ]
    check_step(*pair("qwen3", "ema"), samples, ObjectiveConfig(kind="hybrid", dual_clip=1.2), 0.8)


def test_first_distillation_of_a_batch_does_not_depend_on_the_number_of_factors() -> None:
    objective = ObjectiveConfig(kind="sdpo", importance="reference")
    cfg = Config(objective=objective, rollout=RolloutConfig(temperature=0.8))
    for policy in filter(None, pair("qwen3", "ema")):
        samples = [s for s in make_samples(3) if not s.policy_weight]  # GRPO clips only the first factor
        one = found(policy, samples, objective, 0.8)
        two = found(policy, before_first_update(policy, samples, cfg), objective, 0.8)
        assert two.loss == pytest.approx(one.loss, rel=1e-5)


@pytest.mark.parametrize("architecture", [*BOTH, "qwen3-4bit", "qwen3_moe", "qwen3_5"])
@pytest.mark.parametrize("number", [1, 6, *(pytest.param(number, marks=pytest.mark.slow) for number in (4, 10))])
def test_step_equals_oracle_on_both_backends_for_every_architecture(architecture: str, number: int) -> None:
    teacher, aggregation = TEACHERS[number % 4], AGGREGATIONS[number % 3]
    objective = ObjectiveConfig(kind="hybrid", aggregation=aggregation, **SUPPORTS[number])
    check_step(*pair(architecture, teacher), make_samples(5, "hybrid"), objective)


ADAPTERS: list[tuple[str, dict[str, Any]]] = [
    ("qwen3", {"kind": "dora"}),
    ("qwen3-4bit", {"kind": "dora"}),
    ("qwen3", {"kind": "full"}),
    ("llama", {"kind": "full"}),
    ("gemma3", {"kind": "full"}),
    ("llama", {"keys": ["self_attn.q_proj", "mlp.down_proj"], "layers": 1}),
    ("llama", {"keys": ["self_attn.v_proj", "lm_head"]}),
    ("qwen3", {"keys": ["self_attn.v_proj", "model.embed_tokens"]}),
    ("llama", {"keys": ["model.embed_tokens", "lm_head"], "kind": "dora"}),
]


@pytest.mark.parametrize(
    ("architecture", "options", "teacher"),
    [  # by default each adapter has one of the teachers, and each kind of adapter both
        pytest.param(*adapter, teacher, marks=[] if (at + turn) % 2 == 0 else pytest.mark.slow)
        for at, adapter in enumerate(ADAPTERS)
        for turn, teacher in enumerate(["ema", "trust_region"])
    ],
    ids=str,
)
def test_step_equals_oracle_on_both_backends_for_every_adapter(
    architecture: str, options: dict[str, Any], teacher: str
) -> None:
    policies = make_pair_where_possible(architecture, teacher=teacher, **options)
    objective = ObjectiveConfig(kind="hybrid", support="top_k", top_k=7, alpha=0.5)
    check_step(*policies, make_samples(7, "hybrid"), objective)
