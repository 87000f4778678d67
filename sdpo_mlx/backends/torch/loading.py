"""Loads a folder of safetensors with transformers and checks that body and head give the whole model's output.

Remote code and pickles were refused before (`models/resolve.py`), and nothing is downloaded here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging

from sdpo_mlx.backends.torch.kv_cache import Layers, cache_of, given, prefill
from sdpo_mlx.config import ModelConfig
from sdpo_mlx.core.errors import ConfigError

CHUNK_BYTES = 64 * 2**20  # one float32 copy of a chunk's logits; some 15 to 25 of it live at once
PARITY_TOLERANCE = 2e-2  # bfloat16 keeps eight bits; float32 models come out near 1e-6


@dataclass(frozen=True)
class Model:
    """The whole model and its body (ids to the last hidden states); its head makes logits of those."""

    whole: nn.Module
    body: nn.Module
    vocab_size: int
    device: torch.device
    softcap: float | None = None
    shares: bool = True  # whether prompts that begin alike may run once
    batched: bool = True  # whether rollouts may be decoded side by side
    recompute: bool = False  # run each block again in the backward pass instead of keeping its activations

    @property
    def head(self) -> nn.Module:
        """The output layer; an adapter may have wrapped it since the model was loaded."""
        return self.whole.get_output_embeddings()

    @property
    def chunk(self) -> int:
        """Response positions that the head sees at once."""
        return max(16, CHUNK_BYTES // (4 * self.vocab_size))

    def hidden(self, rows_NT: Tensor, prefix: Layers | None = None) -> Tensor:
        """Last hidden states (N, T, d) of right-padded rows that continue from a shared prefix."""
        if prefix is not None:
            cache = cache_of(prefix, rows_NT.shape[0])
            return self.body(input_ids=rows_NT, use_cache=True, **given(self.body, cache)).last_hidden_state
        with _recomputed(self.body) if self.recompute and torch.is_grad_enabled() else nullcontext():
            return self.body(input_ids=rows_NT, use_cache=False).last_hidden_state

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Logits (R, V) of hidden states."""
        logits = self.head(hidden_RD)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


@contextmanager
def _recomputed(body: nn.Module) -> Iterator[None]:
    """Inside, a block keeps only its input for the backward pass (torch.utils.checkpoint)."""
    layers = [(layer, layer.forward) for layer in body.layers]
    for layer, forward in layers:
        layer.forward = partial(checkpoint, forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer, _ in layers:
            del layer.forward


def load(path: Path, cfg: ModelConfig) -> tuple[Model, dict[str, Any]]:
    """Return the model in evaluation mode and its config; raise ConfigError if it cannot be read or trained."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = device_of(cfg.device)
    dtype = "float32" if cfg.dtype == "auto" and device.type == "cpu" else cfg.dtype
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if "quantization" in config:
            raise ValueError("its weights are quantised by mlx, which only the mlx backend reads")
        whole = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="sdpa",
            **_in_bits(cfg, device, dtype),
        )
        _make_differentiable(whole)
        whole = whole.eval() if cfg.bits else whole.eval().to(device)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"the model cannot be loaded: {' '.join(str(error).split())[:200] or type(error).__name__}",
            where=path.name,
            fix="use a folder with config.json and safetensors of an architecture that transformers knows",
        ) from error
    text = config.get("text_config", config)
    softcap = getattr(whole.config, "final_logit_softcapping", None)
    model = Model(whole, whole.get_decoder(), int(whole.get_output_embeddings().weight.shape[0]), device, softcap)
    check_parity(model)
    return model, text


@torch.no_grad()
def check_parity(model: Model) -> float:
    """Return the largest difference in probability between the parts, prefix shared, and the whole model.

    Raise ConfigError if they differ: learning would follow a wrong gradient.
    """
    ids = (torch.arange(24, device=model.device).reshape(2, 12) * 37 + 11) % model.vocab_size
    ids[1, :6] = ids[0, :6]
    whole = model.whole(input_ids=ids).logits[:, 6:].float().softmax(-1)
    parts = model.logits(model.hidden(ids[:, 6:], prefill(model.body, ids[:1, :6]))).float().softmax(-1)
    worst = float((whole - parts).abs().max())
    if not worst <= PARITY_TOLERANCE:
        raise ConfigError(
            f"the architecture {model.whole.config.model_type!r} cannot be trained yet: its parts differ from the "
            f"whole by {worst:.1e} in probability",
            where="model.name",
            fix="use a llama, qwen2, qwen3, gemma3, smollm or phi3 model",
        )
    return worst


def _in_bits(cfg: ModelConfig, device: torch.device, dtype: str) -> dict[str, Any]:
    """Options to quantise the linear layers with bitsandbytes: QLoRA's NF4, or 8 bits. Raise ConfigError without it."""
    if cfg.bits is None:
        return {}
    if find_spec("bitsandbytes") is None:
        fix = "pip install 'sdpo-mlx[bitsandbytes]', or leave model.bits out"
        raise ConfigError("bitsandbytes is not installed", where="model.bits", fix=fix)
    if cfg.adapter.kind == "full":
        raise ConfigError("a quantised base cannot be trained in full", where="model.bits", fix="use lora or dora")
    how = BitsAndBytesConfig(
        load_in_4bit=cfg.bits == 4,
        load_in_8bit=cfg.bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else getattr(torch, dtype),
    )
    return {"quantization_config": how, "device_map": {"": str(device)}}


def device_of(name: str) -> torch.device:
    """Return the device; `auto` is CUDA, then Apple's GPU, then the CPU. Raise ConfigError if it does not exist."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(each for each, found in here.items() if found)
    if not here[name]:
        fix = f"choose {', '.join(each for each, found in here.items() if found)}"
        raise ConfigError(f"torch finds no {name} here", where="model.device", fix=fix)
    return torch.device(name)


@torch.no_grad()
def _make_differentiable(whole: nn.Module) -> None:
    """Make the values and gradients of embeddings and quantised layers exact."""
    for module in whole.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # bitsandbytes' packing for CPUs has no gradient
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # some prompts contain this id, and it has a gradient like any other
            if isinstance(scale := getattr(module, "embed_scale", None), Tensor):
                scale.copy_(scale.bfloat16())  # Gemma's factor was rounded when it was trained
