"""Dimensions of a model from its `config.json`: parameters, adapters, caches; no weights are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sdpo_mlx.config import AdapterConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.layer_dimensions import Common, Layer, Linear, experts_of, number
from sdpo_mlx.models.layer_kinds import layer

# Where wrappers of vision-language models keep the language model.
TEXT_KEYS = ("text_config", "llm_config", "language_config", "language_model_config")
ALWAYS_TIED = ("gemma", "cohere", "gpt2", "hunyuan", "lfm2", "lfm2_moe", "lfm2-vl")
# Architectures whose parameters, counted from the configuration, are within 1 % of those of the model that mlx-lm
# builds. Others are estimated as if they had the most common layout.
_COUNTED = """
Klear afmoe apertus baichuan_m1 bailing_moe cohere cohere2 dbrx deepseek deepseek_v2 deepseek_v3 deepseek_v32
dots1 ernie4_5 ernie4_5_moe exaone exaone4 exaone_moe falcon_h1 gear gemma gemma2 gemma3 gemma3n gemma4 glm glm4
glm4_moe glm4_moe_lite glm_moe_dsa gpt2 gpt_bigcode gpt_neox gpt_oss gptj granite granitemoe granitemoehybrid
helium hunyuan hunyuan_v1_dense internlm2 internlm3 iquestloopcoder jamba kimi_k3 kimi_linear kimi_vl lfm2
lfm2_moe llama llama4 mamba mamba2 mellum mimo minicpm minicpm3 minimax minimax_m3_vl ministral3 mistral4
mixtral muse_glimmer nanbeige nanochat nemotron nemotron_h olmo2 olmo3 olmo_hybrid olmoe phi phi3 phimoe
phixtral plamo3 qwen qwen2 qwen2_moe qwen3 qwen3_5 qwen3_5_moe qwen3_moe qwen3_next seed_oss smollm3 solar_open
spark2_5 stablelm starcoder2 talkie telechat3 youtu_llm
mistral qwen2_vl qwen2_5_vl qwen3_vl qwen3_vl_moe
"""
COUNTED = frozenset(_COUNTED.split())
SCALE_BYTES = {"mxfp4": 1, "nvfp4": 1, "mxfp8": 1}  # per group, without a bias; affine has both in the model's type
LAYER_PATH = re.compile(r"\.?(?:layers|h|blocks)\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Quantization:
    """Bits and group size, and those of single layers by their path; `bits` 0: not quantized."""

    bits: int
    group: int
    mode: str
    own: tuple[tuple[str, int, int], ...] = ()  # path, bits (0: not quantized), group

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Quantization:
        """Read `quantization` as mlx-lm writes it, or `quantization_config` with a known method."""
        found: Mapping[str, Any] = config.get("quantization") or {}
        if not found and (config.get("quantization_config") or {}).get("quant_method") == "mxfp4":
            found = {"bits": 4, "group_size": 32, "mode": "mxfp4"}
        bits, group = int(found.get("bits", 0)), int(found.get("group_size", 64))
        own = [
            (path, int(each.get("bits", bits)) if each else 0, int(each.get("group_size", group)) if each else group)
            for path, each in found.items()
            if isinstance(each, Mapping) or each is False
        ]
        return cls(bits, group, str(found.get("mode", "affine")), tuple(own))

    def bytes_per_number(self, bits: int, group: int, width: int) -> float:
        """Bytes of one weight, its share of scales and biases included; `width` bytes if it is not quantized."""
        return bits / 8 + SCALE_BYTES.get(self.mode, 2 * width) / group if bits else width


@dataclass(frozen=True)
class ModelDims:
    """A decoder's dimensions; `bits` 0: not quantized."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    vocabulary: int
    tied: bool
    bits: int
    group: int
    experts: int
    experts_used: int
    context: int
    layer: tuple[Layer, ...] = ()
    outside: int = 0  # weights beside layers, embedding and head
    architecture: str = ""
    quantization: Quantization = Quantization(0, 64, "affine")

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> ModelDims:
        """Read a configuration; raises ConfigError if it lacks what every decoder has."""
        text = language_part(config)
        try:
            common, (experts, used) = Common(text), experts_of(text)
            quantization = Quantization.of({**config, **{k: v for k, v in text.items() if k == "quantization"}})
            always = common.kind.startswith(ALWAYS_TIED[:2]) or common.kind in ALWAYS_TIED
            tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", always))
            layers = min(common.layers, 10_000)  # a damaged configuration must not take the machine's memory
            return cls(
                layers=common.layers,
                width=common.width,
                heads=common.heads,
                kv_heads=common.kv_heads,
                head_width=common.head_width,
                inner=number(text, "moe_intermediate_size", default=common.inner) if experts else common.inner,
                vocabulary=number(text, "vocab_size", "num_vocab"),
                tied=bool(tied) or always,
                bits=quantization.bits,
                group=quantization.group,
                experts=experts,
                experts_used=used,
                context=number(text, "max_position_embeddings", "n_positions", "n_ctx", default=4_096),
                layer=tuple(layer(common, index) for index in range(layers)),
                outside=_outside(common),
                architecture=common.kind,
                quantization=quantization,
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
            what = f"config.json lacks the model's dimensions ({error})"
            raise ConfigError(what, where=where, fix="name a decoder's folder") from error

    @property
    def note(self) -> str:
        """A line that says why the dimensions are an estimate, empty if they are not."""
        if self.architecture in COUNTED:
            return ""
        return f"the layers of {self.architecture or 'this model'} are estimated: its configuration is not known here"

    @property
    def attending(self) -> int:
        """Layers that keep keys and values."""
        return sum(each.keys_values > 0 for each in self.layer)

    @property
    def kv_width(self) -> int:
        """Numbers that one token takes in the largest KV cache of one layer."""
        return max((each.keys_values for each in self.layer), default=0)

    def cached(self, tokens: float) -> float:
        """Numbers in the KV caches of all layers after this many tokens of one row."""
        return sum(each.keys_values * min(tokens, each.window or tokens) for each in self.layer)

    @property
    def state(self) -> int:
        """Numbers in the recurrent states of all layers, for one row."""
        return sum(each.state for each in self.layer)

    def quantized(self, bits: int, group: int) -> ModelDims:
        """The same model with quantized weights."""
        return replace(self, bits=bits, group=group, quantization=Quantization(bits, group, "affine"))

    def linears(self, block: int) -> list[Linear]:
        """The linear layers of one layer."""
        return list(self.layer[block].linears)

    @cached_property
    def trunk_parameters(self) -> int:
        """Weights inside the layers, all experts."""
        return sum(each.other + sum(i * o * n for _, i, o, n in each.linears) for each in self.layer)

    @cached_property
    def active_parameters(self) -> int:
        """Weights inside the layers that are used for one token."""
        return int(sum(self.active_by_layer))

    @cached_property
    def active_by_layer(self) -> list[float]:
        """`active_parameters` of each layer."""
        share = self.experts_used / self.experts if self.experts else 1.0
        return [sum(i * o * (n * share if n > 1 else 1) for _, i, o, n in each.linears) for each in self.layer]

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding, and of the output head if it is not tied."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights except norms and biases."""
        return self.trunk_parameters + self.embedding_parameters + self.outside

    def weight_bytes(self, width: int) -> float:
        """Bytes of the weights at `width` bytes per number; quantized ones with what each group stores beside them."""
        kept = self.quantization
        usual = kept.bytes_per_number(self.bits, self.group, width)
        total = self.parameters * usual
        for path, bits, group in kept.own if self.bits else ():
            total += self._numbers_at(path) * (kept.bytes_per_number(bits, group, width) - usual)
        return total

    def _numbers_at(self, path: str) -> int:
        """Weights of one module by its path in the checkpoint, 0 if unknown."""
        found = LAYER_PATH.search(path)
        if found is None:
            return self.vocabulary * self.width if path.endswith(("embed_tokens", "lm_head", "wte")) else 0
        index, name = int(found[1]), found[2].rpartition(".")[2]
        linears = self.layer[index].linears if index < len(self.layer) else ()
        return next((i * o * n for own, i, o, n in linears if own.rpartition(".")[2] == name), 0)

    def adapter_parameters(self, cfg: AdapterConfig) -> int:
        """Number of trained weights."""
        if cfg.kind == "full":
            return self.parameters
        first = 0 if cfg.layers < 0 else max(0, self.layers - cfg.layers)
        total = 0
        for each in self.layer[first:]:
            for name, i, o, n in each.linears:
                if cfg.keys is None or name in cfg.keys:
                    total += n * (cfg.rank * (i + o) + (o if cfg.kind == "dora" else 0))
        return total


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration of the language model inside a wrapper's, or the configuration itself; or TypeError."""
    for key in TEXT_KEYS:
        if (text := config.get(key)) is not None:
            return {"model_type": config.get("model_type", ""), **text}
    return config


def _outside(common: Common) -> int:
    """Weights beside layers, embedding and head: positions, embeddings of each layer's own input."""
    text, d = common.text, common.width
    total = number(text, "n_positions", "n_ctx", default=0) * d if common.kind in {"gpt2", "gpt_bigcode"} else 0
    own = number(text, "hidden_size_per_layer_input", default=0)
    if own:
        rows = number(text, "vocab_size_per_layer_input", default=number(text, "vocab_size"))
        total += common.layers * own * (rows + d)
    return total + 2 * d * d * (number(text, "altup_num_inputs", default=1) - 1)
