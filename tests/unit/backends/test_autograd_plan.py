"""The plan for torch: what autograd keeps of a block is what torch saves, and a card's free memory is the limit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import sdpo
from requirements import needs_torch
from small_models import CONFIGS
from torch_memory import SHAPES, saved_bytes

from sdpo_mlx.backends import autograd_plan
from sdpo_mlx.backends.memory_plan import choose, limit_of, memory, number_bytes, work_of
from sdpo_mlx.config import Config
from sdpo_mlx.core import gpu
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.dimensions import ModelDims
from sdpo_mlx.models.resolve import shipped_dimensions

QWEN = ModelDims.of(shipped_dimensions("qwen", "torch"), "qwen")
GB = 2**30


def config(**sections: Any) -> Config:
    model = {"backend": "torch", "device": "cuda", **sections.pop("model", {})}
    return Config.model_validate({"model": model, **sections})


@needs_torch
@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_kept_bytes_are_those_that_torch_saves(shape: str, dtype: str, kind: str) -> None:
    if kind == "full" and dtype == "bfloat16":
        pytest.skip("a model that is trained in full is float32")
    cfg = config(model={"dtype": dtype, "adapter": {"kind": kind, "rank": 4}})
    dims = ModelDims.of(SHAPES[shape], shape)
    planned = autograd_plan.kept_bytes(dims, dims.layer[0], cfg, number_bytes(cfg.model))
    assert 0.97 <= planned / saved_bytes(SHAPES[shape], cfg.model) <= 1.2


def test_kept_bytes_of_a_known_model() -> None:
    """150 KB per token and block of Qwen3-4B, 227 KB with peft's copies (measured on its own block)."""
    assert autograd_plan.kept_bytes(QWEN, QWEN.layer[0], config(), 2) == pytest.approx(150_000, rel=0.03)
    bits = config(model={"bits": 4})
    assert autograd_plan.kept_bytes(QWEN, QWEN.layer[0], bits, 2) == pytest.approx(227_000, rel=0.03)


def test_blocks_are_recomputed_where_a_card_is_too_small_to_keep_them() -> None:
    cfg = config()
    work = work_of(cfg, 600, 1_600, number_bytes(cfg.model))
    large, small = (choose(QWEN, cfg, work, gigabytes * GB) for gigabytes in (80, 12))
    assert large.keep
    assert not small.keep
    for work, limit in ((large, 80), (small, 12)):
        assert memory(QWEN, cfg, work).highest <= limit * GB
    kept = choose(QWEN, config(train={"grad_checkpoint": False}), work, 16 * GB)
    assert kept.keep


def test_rollouts_at_once_follow_from_a_card_s_memory() -> None:
    cfg = config(rollout={"problems_per_step": 64, "group_size": 8, "max_tokens": 1_024})
    work = work_of(cfg, 400, 1_600, number_bytes(cfg.model))
    rows = [choose(QWEN, cfg, work, gigabytes * GB).concurrency for gigabytes in (12, 24, 48, 80)]
    assert rows == [16, 64, 128, 256]
    fixed = config(rollout={**cfg.rollout.model_dump(), "concurrency": 40})
    assert choose(QWEN, fixed, work_of(fixed, 400, 1_600, 2), 80 * GB).concurrency == 40


def test_layers_with_a_window_keep_all_keys_on_torch() -> None:
    cfg = config(rollout={"max_tokens": 4_096})
    dims = ModelDims.of({**CONFIGS["gemma3"], "sliding_window": 8}, "gemma3")
    work = work_of(cfg, 1_000, 6_000, 2)
    keys = memory(dims, cfg, work).phases["generate"]["keys and values"]
    assert keys >= 2 * work.rows * 5_096 * sum(layer.keys_values for layer in dims.layer)


def test_four_bits_make_the_blocks_small_but_not_the_embedding() -> None:
    whole, quantized = (autograd_plan.weight_bytes(QWEN, bits, 2) for bits in (None, 4))
    embedding = 2 * QWEN.embedding_parameters
    assert quantized - embedding == pytest.approx((whole - embedding) * 4.5 / 16)


def test_limit_is_the_free_memory_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd_plan, "free_bytes", lambda: 20 * GB)
    assert limit_of(config()) == pytest.approx(19 * GB)
    assert limit_of(config(), 40 * GB) == pytest.approx(38 * GB)
    assert limit_of(config(train={"memory_gb": 7.0})) == 7 * GB
    monkeypatch.setattr(autograd_plan, "total_memory", lambda: 32 * GB)
    assert limit_of(config(model={"device": "cpu"})) == 24 * GB
    monkeypatch.setattr(gpu, "card", lambda: gpu.Card("NVIDIA", "580.65.06"))
    assert limit_of(config(model={"device": "auto"})) == pytest.approx(19 * GB)
    assert number_bytes(config(model={"device": "auto"}).model) == 2
    assert number_bytes(config(model={"device": "cpu"}).model) == 4


def test_model_whose_weights_exceed_the_card_is_refused_before_the_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sdpo_mlx.backends.preflight import check_memory

    monkeypatch.setattr(autograd_plan, "free_bytes", lambda: 6 * GB)
    shape = shipped_dimensions("qwen", "torch")
    with pytest.raises(ConfigError, match=r"but the limit is 5\.7 GB") as refusal:
        check_memory(shape, config())
    assert "--set model.bits=4" in refusal.value.line()
    check_memory(shape, config(model={"bits": 4}))


def test_plan_for_a_card_names_four_bits(tmp_path: Path) -> None:
    words = ("plan", "--model", "qwen", "--backend", "torch", "--set", "model.device=cuda", "--memory", "9GB")
    code, out, err = sdpo(*words, "--json")
    assert code == 1, err
    found = json.loads(out)
    assert found["backend"] == "torch"
    assert found["device"] is None
    assert found["remedies"][0]["change"] == "--set model.bits=4"
    text = sdpo(*words)[1]
    assert "blocks recomputed" in text
    assert "not measured on a card" in text


@needs_torch
@pytest.mark.parametrize("memory_gb", [None, 0.5])
def test_memory_given_by_the_user_is_planned_on_a_cpu_too(memory_gb: float | None) -> None:
    from sdpo_mlx.models.chat_template import load_chat
    from sdpo_mlx.models.resolve import resolve
    from sdpo_mlx.rl.components import _plan
    from sdpo_mlx.tasks.registry import open_task

    cfg = config(model={"device": "cpu"}, train={"memory_gb": memory_gb})
    model = resolve("tiny")
    planned = _plan(cfg, model, load_chat(model.path), open_task(cfg).task)
    assert (planned.train.micro_batch_tokens, planned.rollout.concurrency) == ((512, 64) if memory_gb else (None, None))


@needs_torch
@pytest.mark.parametrize(("free", "recomputed"), [(8 * GB, False), (9 * 2**20, True)])
def test_run_on_a_card_recomputes_blocks_where_the_plan_says_so(
    free: int, recomputed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdpo_mlx.models.chat_template import load_chat
    from sdpo_mlx.models.resolve import resolve
    from sdpo_mlx.rl.components import _plan
    from sdpo_mlx.tasks.registry import open_task

    monkeypatch.setattr(autograd_plan, "free_bytes", lambda: free)
    cfg, model = config(), resolve("tiny")
    planned = _plan(cfg, model, load_chat(model.path), open_task(cfg).task)
    assert planned.train.grad_checkpoint is recomputed
    assert planned.rollout.concurrency


def test_dimensions_of_other_layers_give_a_plan() -> None:
    for name, found in CONFIGS.items():
        dims = ModelDims.of(found, name)
        cfg = config(train={"memory_gb": 8.0})
        assert 0 < memory(dims, cfg, work_of(cfg, 100, 400, 2)).highest < 8 * GB
