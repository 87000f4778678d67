"""Random models with the head widths of published ones, written as folders that the backend opens like any other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from sdpo_mlx.backends.architectures import mlx_lm_module
from sdpo_mlx.backends.mlx.policy import MLXPolicy
from sdpo_mlx.config import AdapterConfig, ModelConfig, TeacherConfig, TrainConfig

VOCABULARY = 512
QUANTIZATION: Mapping[str, Any] = {"group_size": 64, "bits": 4}
RANK = 4
STIR = 0.1  # how far student and teacher are moved apart

_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 1_024,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class TestModel:
    """One random model: a kind of layer, the width of its heads, and `float32`, `bfloat16` or `4-bit`."""

    __test__ = False  # not a test class, whatever pytest reads from its name

    kind: str
    width: int
    dtype: str

    @property
    def name(self) -> str:
        """The name in the table."""
        return f"{self.kind} {self.width}, {self.dtype}"

    @property
    def exact(self) -> bool:
        """Whether it computes in float32."""
        return self.dtype != "bfloat16"

    def config(self) -> dict[str, Any]:
        """Return the contents of its `config.json`."""
        quantized = {"quantization": dict(QUANTIZATION)} if self.dtype == "4-bit" else {}
        return {**self._dimensions(), **quantized}

    def _dimensions(self) -> dict[str, Any]:
        own = {**_COMMON, "head_dim": self.width}
        if self.kind == "sliding window":
            extra = {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": self.width}
            return {**own, **extra, "model_type": "gemma3_text", "rope_local_base_freq": 10_000.0}
        if self.kind == "gated delta":
            heads = {"linear_num_value_heads": 2, "linear_num_key_heads": 1, "linear_conv_kernel_dim": 4}
            widths = {"linear_key_head_dim": self.width, "linear_value_head_dim": self.width}
            text = {**own, **heads, **widths, "model_type": "qwen3_5_text", "full_attention_interval": 2}
            return {"model_type": "qwen3_5", "text_config": text}
        if self.kind == "experts":
            # Not in bfloat16: mlx 0.32.4 multiplies the rows of experts on a CPU in float32 alone.
            experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
            return {**own, **experts, "model_type": "qwen3_moe", "decoder_sparse_step": 1, "mlp_only_layers": []}
        return {**own, "model_type": "qwen3"}


MODELS = (
    TestModel("attention", 64, "float32"),
    TestModel("attention", 128, "float32"),
    TestModel("attention", 256, "float32"),
    TestModel("attention", 128, "bfloat16"),
    TestModel("attention", 64, "4-bit"),
    TestModel("sliding window", 256, "float32"),
    TestModel("sliding window", 256, "bfloat16"),
    TestModel("gated delta", 128, "float32"),
    TestModel("gated delta", 128, "bfloat16"),
    TestModel("gated delta", 128, "4-bit"),
    TestModel("experts", 128, "float32"),
    TestModel("experts", 128, "4-bit"),
)


@contextmanager
def opened(model: TestModel) -> Iterator[MLXPolicy]:
    """Open a random model on the default device, its student and teacher at different places."""
    with TemporaryDirectory(prefix="sdpo-self-test-") as folder:
        write(Path(folder), model.config())
        yield open_folder(Path(folder), "bfloat16" if model.dtype == "bfloat16" else "float32")


def open_folder(folder: Path, dtype: str) -> MLXPolicy:
    """Open a written model in that type."""
    policy = MLXPolicy(
        folder,
        ModelConfig(name="self-test", dtype=dtype, adapter=AdapterConfig(rank=RANK)),  # type: ignore[arg-type]
        TeacherConfig(kind="ema", update_rate=0.3),
        TrainConfig(learning_rate=1e-3),
    )
    rng, state = np.random.default_rng(1), policy.state()

    def moved(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {n: (a + STIR * rng.standard_normal(a.shape)).astype(np.float32) for n, a in arrays.items()}

    policy.load_state({**state, "student": moved(state["student"]), "teacher": moved(state["teacher"])})
    return policy


def write(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a random float32 model of that configuration, with linear layers quantized as `quantization` says."""
    module = import_module(f"mlx_lm.models.{mlx_lm_module(config)}")
    model = module.Model(module.ModelArgs.from_dict(dict(config)))
    gemma = "gemma" in config["model_type"]
    if config["model_type"] == "gemma3_text":
        model.sanitize({})  # ties the embeddings
    rng = np.random.default_rng(0)

    def draw(path: str, array: mx.array) -> mx.array:
        if not mx.issubdtype(array.dtype, mx.floating):
            return array
        centre = 1.0 if "norm" in path and not gemma else 0.0
        scale = 0.1 if array.ndim < 2 else array.shape[-1] ** -0.5
        return mx.array((centre + scale * rng.standard_normal(array.shape)).astype(np.float32))

    model.update(tree_map_with_path(draw, model.parameters()))
    if found := config.get("quantization"):
        _quantize(model, found)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _quantize(model: nn.Module, found: Mapping[str, Any]) -> None:
    """Quantize as mlx-lm reads it again: single layers may have settings of their own, or `False`."""

    def settings(path: str, layer: nn.Module) -> Any:
        own = found.get(path, True)
        group = (own if isinstance(own, Mapping) else found).get("group_size", QUANTIZATION["group_size"])
        return own if hasattr(layer, "to_quantized") and layer.weight.shape[-1] % group == 0 else False

    common = {name: found[name] for name in ("group_size", "bits", "mode") if name in found}
    nn.quantize(model, **common, class_predicate=settings)


@contextmanager
def on_cpu() -> Iterator[None]:
    """Compute on the CPU inside."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        yield
    finally:
        mx.set_default_device(before)
