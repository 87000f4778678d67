"""Loads a folder of safetensors with transformers, its attention as the model supports it.

Remote code and pickles were refused before (`models/resolve.py`), and nothing is downloaded here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    GenerationConfig,
    Mxfp4Config,
)
from transformers.utils import logging

from sdpo_mlx.backends.architectures import causal_class, image_class
from sdpo_mlx.backends.preflight import check_quantization, quantization_method
from sdpo_mlx.backends.torch import cpu_dtype
from sdpo_mlx.backends.torch.device import device_notes, device_of, dtype_on_card
from sdpo_mlx.backends.torch.model import Model, body_of
from sdpo_mlx.backends.torch.out_of_memory import free_bytes, is_out_of_memory
from sdpo_mlx.config import ModelConfig
from sdpo_mlx.core.errors import ConfigError

# Methods whose layers have no gradient, or need a kernel: their weights are converted to 16 bits.
DEQUANTIZED = {"fp8": FineGrainedFP8Config, "mxfp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, the content of config.json, and warnings about its device and type."""

    model: Model
    config: dict[str, Any]
    notes: tuple[str, ...]


def load(path: Path, cfg: ModelConfig, *, on_host: bool = False) -> Loaded:
    """Return the model on its device, or still in host memory.

    A vision-language model that AutoModelForCausalLM does not know keeps its towers, which a text does not run through.
    Raise ConfigError if it cannot be read or trained.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device, notes = device_of(cfg.device), tuple[str, ...]()
    chosen = cfg.dtype == "auto" and device.type == "cpu"
    dtype = cpu_dtype.candidate(path, cfg) if chosen else cfg.dtype
    dtype = dtype_on_card(cfg) if device.type == "cuda" else dtype
    place = torch.device("cpu") if on_host else device
    whole, config = _read(path, cfg, place, dtype)
    if chosen and dtype == "bfloat16" and (why := cpu_dtype.disagreement(whole)):
        notes = (f"the weights are converted to float32: {why}",)
        del whole  # before it is read again
        whole, config = _read(path, cfg, place, "float32")
    check_vocabulary(path, int(whole.get_input_embeddings().weight.shape[0]))
    model = Model(whole, body_of(whole), int(whole.get_output_embeddings().weight.shape[0]), device)
    return Loaded(model, config, (*notes, *device_notes(device, whole.dtype, cfg)))


def _read(path: Path, cfg: ModelConfig, device: torch.device, dtype: str) -> tuple[Any, dict[str, Any]]:
    """The model on its device, and its config."""
    free = free_bytes(device)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        check_quantization(config, path.name, "torch")
        bitsandbytes = cfg.bits or quantization_method(config) == "bitsandbytes"
        only_with_images = image_class(config) and not causal_class(config)
        whole = (AutoModelForImageTextToText if only_with_images else AutoModelForCausalLM).from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            **_quantization(cfg, config, dtype),
            **({"device_map": {"": str(device)}} if device.type != "cpu" or bitsandbytes else {}),
        )
        if whole.config.is_encoder_decoder or whole.get_output_embeddings() is None:
            raise ValueError(f"{type(whole).__name__} is no decoder with an output layer")
        _make_differentiable(whole)
        whole.eval()
    except ConfigError:
        raise
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise _too_large(path, cfg, device, free) from error
        raise ConfigError(
            f"the model cannot be loaded: {' '.join(str(error).split())[:200] or type(error).__name__}",
            where=path.name,
            fix="use a folder with config.json and safetensors of an architecture that transformers knows",
        ) from error
    whole.generation_config = GenerationConfig()  # a folder's own penalties and cuts would change the policy
    return whole, config


def _too_large(path: Path, cfg: ModelConfig, device: torch.device, free: int | None) -> ConfigError:
    """The error of a model that does not fit; `free` are the bytes that were free before."""
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    found = "" if free is None else f", and {free / 2**30:.1f} GB were free on {device}"
    others = "" if device.type == "cpu" else "close other programs on the GPU, "
    bits = "" if cfg.bits == 4 or cfg.adapter.kind == "full" else "set model.bits=4, "
    return ConfigError(
        f"out of memory while loading: the weights are {size / 2**30:.1f} GB in their files{found}",
        where=cfg.name,
        fix=f"{others}{bits}or use a smaller model",
    )


def check_vocabulary(path: Path, rows: int) -> None:
    """Raise ConfigError if the tokenizer beside the model has ids that the embedding has no row for."""
    file = path / "tokenizer.json"
    if not file.exists():
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = found.get("model", {}).get("vocab", {})
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    largest = max([*ids, *(each["id"] for each in found.get("added_tokens", []))], default=0)
    if largest >= rows:
        raise ConfigError(
            f"the tokenizer has ids up to {largest}, but the model has {rows} embedding rows",
            where=path.name,
            fix="use the tokenizer that belongs to this model",
        )


def _quantization(cfg: ModelConfig, config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Options to quantize the linear layers with bitsandbytes (QLoRA's NF4, or 8 bits), or to undo another method.

    Raise ConfigError without bitsandbytes.
    """
    method = quantization_method(config)
    if (cfg.bits or method == "bitsandbytes") and find_spec("bitsandbytes") is None:
        fix = "pip install 'sdpo-mlx[bitsandbytes]', or use a model that is not quantized"
        raise ConfigError("bitsandbytes is not installed", where="model.bits", fix=fix)
    if (cfg.bits or method == "bitsandbytes") and cfg.adapter.kind == "full":
        raise ConfigError("a quantized base cannot be trained in full", where="model.bits", fix="use lora or dora")
    if cfg.bits and method:
        fix = "leave model.bits out, or use the model that it was made from"
        raise ConfigError(f"its weights are quantized by {method} already", where="model.bits", fix=fix)
    if method in DEQUANTIZED:
        return {"quantization_config": DEQUANTIZED[method](dequantize=True)}
    if cfg.bits is None:
        return {}
    how = BitsAndBytesConfig(
        load_in_4bit=cfg.bits == 4,
        load_in_8bit=cfg.bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else getattr(torch, dtype),
    )
    return {"quantization_config": how}


@torch.no_grad()
def _make_differentiable(whole: nn.Module) -> None:
    """Make the values and gradients of embeddings and quantized layers exact."""
    for module in whole.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # bitsandbytes' packing for CPUs has no gradient
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # some prompts contain this id, and it has a gradient like any other
            if isinstance(scale := getattr(module, "embed_scale", None), Tensor):
                scale.copy_(scale.bfloat16())  # Gemma's factor was rounded when it was trained
