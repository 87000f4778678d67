"""Every architecture of the installed mlx-lm: built small by itself, split, generated from, and trained.

The gradient is held against plain autodiff through the whole model with its own caches.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_architectures import (
    NOT_HERE,
    REFUSED,
    VOCABULARY,
    architectures,
    small_config,
    small_model,
    write_architecture,
)

import sdpo_mlx.backends.mlx.mlx_lm_api  # noqa: F401  loads mlx-lm without torch
from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.mlx import adapter, generation, loading
from sdpo_mlx.backends.mlx.model import Model
from sdpo_mlx.backends.packing import pack
from sdpo_mlx.config import AdapterConfig, ModelConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip

IDS = (np.arange(48, dtype=np.int32) * 37 + 11) % VOCABULARY
PROMPTS = [np.append(IDS[:18], IDS[20:23]), np.append(IDS[:18], IDS[20:23]), IDS[40:43]]
RESPONSES = [IDS[1:7], IDS[5:9], IDS[3:8]]
# Trained in the default suite: one of each kind of layer.
KINDS = {
    "gpt2": "generic",  # other names, learned positions
    "gemma4_text": "generic",  # shared keys and values, per-layer inputs, windows
    "gpt_oss": "generic",  # attention sinks, experts
    "lfm2": "generic",  # short convolutions
    "deepseek_v3": "generic",  # latent attention
    "falcon_h1": "generic",  # both in one layer
    "ministral3": "generic",  # scaled queries
    "plamo": "generic",  # layers in a module of their own
    "llama4": "generic",  # chunked attention
    "qwen3_next": "by block",
}


def mean_loss(logits_RV: mx.array, ids_R: Any) -> mx.array:
    return -mx.sum(mx.take_along_axis(nn.log_softmax(logits_RV.astype(mx.float32)), mx.array(ids_R)[:, None], axis=-1))


def trained(name: str) -> tuple[Model, float]:
    """The split model, and the relative error of its LoRA gradient against autodiff through the whole."""
    whole = small_model(name)
    loading.prepared(whole)
    model = loading.taken_apart(whole, VOCABULARY, loading.checked(whole, VOCABULARY))
    cfg = AdapterConfig(rank=2)
    keys = adapter.layer_keys(whole, cfg)
    weights = adapter.attach(whole, cfg.model_copy(update={"keys": keys}), 0)
    rng = np.random.default_rng(1)
    weights = {n: a + mx.array(0.05 * rng.standard_normal(a.shape).astype(np.float32)) for n, a in weights.items()}
    units = pack(PROMPTS, RESPONSES, 10_000, share=model.shares)

    def by_parts(weights: Any) -> mx.array:
        adapter.assign(whole, weights)
        hidden = [model.trunk.graph(unit, 0, recompute=model.trunk.way == "generic") for unit in units]
        ids = [np.concatenate([RESPONSES[member] for member in unit.members]) for unit in units]
        return sum(mean_loss(model.trunk.head(h), i) for h, i in zip(hidden, ids, strict=True))

    def as_whole(weights: Any) -> mx.array:
        adapter.assign(whole, weights)
        total = mx.array(0.0)
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
            logits = whole(mx.array(np.append(prompt, response[:-1]))[None], cache=loading.make_prompt_cache(whole))
            total = total + mean_loss(logits[0, prompt.size - 1 :], response)
        return total

    found, expected = mx.grad(by_parts)(weights), mx.grad(as_whole)(weights)
    mx.eval(found, expected)
    adapter.assign(whole, weights)
    scale = max(float(mx.max(mx.abs(array))) for array in expected.values())
    assert np.isfinite(scale)
    assert scale > 0
    return model, max(float(mx.max(mx.abs(found[n] - expected[n]))) for n in expected) / scale


def sampled(model: Model, batched: bool) -> list[list[int]]:
    greedy = SamplingParams(max_tokens=6, temperature=0.0, top_p=1.0, eos_ids=frozenset())
    one = Model(model.whole, model.trunk, model.vocab_size, model.dtype, model.shares, batched)
    rows = {(p, n): g.ids_T.tolist() for p, n, g in generation.generate(one, PROMPTS[1:], greedy, [[1, 2], [3]])}
    return [rows[each] for each in sorted(rows)]


def check(name: str) -> str:
    """Hold the gradient and the generated tokens against the whole model; return the way of learning."""
    model, error = trained(name)
    assert error < 1e-4  # recurrent layers; all others come out near 1e-6
    alone = sampled(model, batched=False)
    assert all(len(row) == 6 for row in alone)
    if model.batched:
        assert sampled(model, batched=True) == alone
    return model.trunk.way


@pytest.mark.parametrize("name", KINDS)
def test_gradient_and_generation_are_those_of_the_whole_model(name: str) -> None:
    assert check(name) == KINDS[name]


@pytest.mark.parametrize(
    ("name", "router"),
    [("qwen3_moe", "mlp.gate"), ("gpt_oss", "mlp.router"), ("granitemoehybrid", "block_sparse_moe.router.layer")],
)
def test_experts_have_an_adapter_and_their_router_has_none(name: str, router: str) -> None:
    whole = small_model(name)
    keys = adapter.layer_keys(whole, AdapterConfig())
    assert keys is not None
    assert router in dict(whole.layers[-1].named_modules())
    assert router not in keys
    assert any("switch_mlp" in key or "experts" in key for key in keys)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(architectures()) - set(KINDS) - set(NOT_HERE) - set(REFUSED)))
def test_every_architecture_is_trained_and_sampled_from(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    from sdpo_mlx.backends.mlx.policy import MLXPolicy

    folder = write_architecture(tmp_path / "model", name)
    with pytest.raises(ConfigError, match=REFUSED[name]) as error:
        MLXPolicy(folder, ModelConfig(), TeacherConfig(), TrainConfig()).check_gradient()
    assert "\n" not in str(error.value)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(architectures()) - set(NOT_HERE)))
def test_every_architecture_of_mlx_lm_is_built_from_its_configuration(name: str) -> None:
    module = importlib.import_module(f"mlx_lm.models.{name}")
    model = module.Model(module.ModelArgs.from_dict(small_config(name)))
    assert len(model.layers) >= 2
