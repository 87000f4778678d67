"""What the torch backend finds out about a model when it is loaded: shared prompts, batches, gradients, vocabulary."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from requirements import needs_torch
from temp_folders import new_folder
from torch_architectures import write_architecture

from sdpo_mlx.config import ModelConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError

pytestmark = needs_torch


@cache
def folder(name: str) -> Path:
    return write_architecture(new_folder("torch-checks") / name, name)


def opened(name: str = "qwen3", path: Path | None = None, **options: Any) -> Any:
    from sdpo_mlx.backends.torch.policy import TorchPolicy

    model = ModelConfig(name=name, backend="torch", device="cpu", **options)
    return TorchPolicy(path or folder(name), model, TeacherConfig(), TrainConfig())


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_plain_transformer_shares_prompts_and_generates_in_batches(kind: str) -> None:
    policy = opened(adapter={"kind": kind})
    assert (policy.model.shares, policy.model.batched, policy.warnings()) == (True, True, ())


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "qwen3_5_text", "deepseek_v3"])
def test_model_in_bfloat16_passes_the_checks(name: str) -> None:
    policy = opened(name, dtype="bfloat16")
    assert policy.model.whole.dtype.itemsize == 2
    assert policy.model.shares


@cache
def peaked() -> Path:
    """A model whose likeliest token has a probability near 1, as published models on ordinary text."""
    from safetensors.torch import load_file, save_file

    path = new_folder("torch-checks") / "peaked"
    shutil.copytree(folder("qwen3"), path)
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 5
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


@contextmanager
def other_kernels(whole: Any) -> Iterator[None]:
    """Inside, linear layers return numbers that are off by up to one rounding of bfloat16."""
    import torch

    draw = torch.Generator().manual_seed(3)

    def noisy(_module: Any, _inputs: Any, found: Any) -> Any:
        noise = torch.rand(found.shape, generator=draw) * 2 - 1
        return (found.float() * (1 + noise * 2.0**-7)).to(found.dtype)

    hooks = [m.register_forward_hook(noisy) for m in whole.modules() if type(m) is torch.nn.Linear]
    yield
    for hook in hooks:
        hook.remove()


def test_peaked_model_in_bfloat16_passes_with_the_noise_of_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch import checks

    found: list[tuple[float, float]] = []
    parts, generated, differences = checks._parts, checks._generated, checks._differences

    def noisy_parts(model: Any, *rest: Any, **options: Any) -> Any:
        with other_kernels(model.whole):
            return parts(model, *rest, **options)

    def noisy_generation(model: Any, text: Any) -> Any:
        with other_kernels(model.whole):
            return generated(model, text)

    monkeypatch.setattr(checks, "_parts", noisy_parts)
    monkeypatch.setattr(checks, "_generated", noisy_generation)
    monkeypatch.setattr(checks, "_differences", lambda *pair: found.append(differences(*pair)) or found[-1])
    policy = opened(path=peaked(), dtype="bfloat16")
    assert (policy.model.shares, policy.model.batched) == (True, True)
    assert found[0][0] > checks.ROUNDED.probability  # a fixed bound refused this model


@pytest.mark.parametrize("path", [folder, lambda _: peaked()], ids=["flat", "peaked"])
def test_lost_prefix_is_found_in_bfloat16_too(monkeypatch: pytest.MonkeyPatch, path: Any) -> None:
    from sdpo_mlx.backends.torch import kv_cache, model

    shared = kv_cache.shared
    monkeypatch.setattr(
        model, "shared", lambda c, n: kv_cache._mapped([shared(c, n)], lambda tensors, _: tensors[0] * 0)
    )
    assert not opened(path=path("qwen3"), dtype="bfloat16").model.shares
    plain = model.Model.hidden
    monkeypatch.setattr(model.Model, "hidden", lambda self, rows, before=None: plain(self, rows.flip(1), before))
    with pytest.raises(ConfigError, match="differ from the whole"):
        opened(path=path("qwen3"), dtype="bfloat16")


def test_adapter_is_as_it_was_after_the_checks() -> None:
    policy = opened()
    zeros = [name for name, each in policy.student.items() if not each.any()]
    assert zeros == [name for name in policy.student if name.endswith(".lora_b")]
    assert all(parameter.grad is None for parameter in policy.parameters.values())
    assert not any(module._forward_hooks for module in policy.model.whole.modules())


@pytest.mark.parametrize(("factor", "why"), [(2.0, "finite differences"), (float("nan"), "nan in the gradient")])
def test_gradient_that_is_not_the_loss_s_is_refused(monkeypatch: pytest.MonkeyPatch, factor: float, why: str) -> None:
    import torch
    from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, states: Any) -> Any:
            return states.clone()

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad * factor

    plain = Qwen3MLP.forward
    monkeypatch.setattr(Qwen3MLP, "forward", lambda self, states: Spoilt.apply(plain(self, states)))
    with pytest.raises(ConfigError, match=why) as refusal:
        opened().check_gradient()
    assert "'qwen3'" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_prefix_whose_gradient_is_lost_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch import kv_cache, model

    shared = kv_cache.shared
    monkeypatch.setattr(
        model, "shared", lambda c, n: kv_cache._mapped([shared(c, n)], lambda tensors, _: tensors[0].detach())
    )
    policy = opened()
    assert (policy.model.shares, policy.model.batched) == (False, True)


def test_cache_that_cannot_be_built_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch import kv_cache

    monkeypatch.setattr(kv_cache, "_LAYERS", {})
    policy = opened()
    assert (policy.model.shares, policy.model.batched) == (False, False)
    assert "one by one" in policy.warnings()[0]


def test_experts_without_an_adapter_are_told_once() -> None:
    policy = opened("mixtral")
    assert not any("gate" in name or "experts" in name for name in policy.parameters)
    assert policy.warnings() == ("the experts have no adapter on torch; attention and dense layers are trained",)


@pytest.mark.parametrize("added", [True, False])
def test_tokenizer_with_more_ids_than_the_embedding_is_refused(tmp_path: Path, added: bool) -> None:
    path = shutil.copytree(folder("qwen3"), tmp_path / "model")
    vocabulary = {f"t{i}": i for i in range(61 if added else 62)}
    extra = [{"id": 61, "content": "<more>"}] if added else []
    file = path / "tokenizer.json"
    file.write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": extra}))
    with pytest.raises(ConfigError, match="ids up to 61, but the model has 61 embedding rows"):
        opened(path=path)
    file.write_text(json.dumps({"model": {"vocab": {f"t{i}": i for i in range(61)}}, "added_tokens": []}))
    assert opened(path=path).info.vocab_size == 61


def test_loading_the_backend_prints_nothing_and_fetches_no_kernel(tmp_path: Path) -> None:
    """bitsandbytes fetches one on processors with AVX512-BF16 where the package `kernels` is installed."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__):\n    raise SystemExit('a kernel is fetched')\n")
    program = "import sdpo_mlx.backends.torch.policy; import kernels"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
