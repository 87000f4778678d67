"""Dimensions of a model from its `config.json`: parameters, adapters, caches; no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_mlx.config import AdapterConfig
from sdpo_mlx.core.errors import ConfigError

Linear = tuple[str, int, int, int]  # name inside its block, inputs, outputs, how many (experts)


@dataclass(frozen=True)
class ModelDims:
    """A decoder's dimensions; `bits` 0: not quantized, `linear_every` 0: no recurrent blocks.

    With `linear_every` k, each k-th block attends and the others keep a recurrent state.
    """

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
    linear_every: int
    recurrent: tuple[int, int, int]  # number of heads, width of all keys, width of all values in the recurrent blocks
    fused: bool
    context: int

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> ModelDims:
        """Read a configuration; raises ConfigError if it lacks what every decoder has."""
        text: Mapping[str, Any] = config.get("text_config", config)
        quantised: Mapping[str, Any] = config.get("quantization") or {}
        try:
            heads, width = int(text["num_attention_heads"]), int(text["hidden_size"])
            experts = int(text.get("num_experts") or text.get("num_local_experts") or 0)
            hybrid = "linear_num_value_heads" in text
            r_heads = int(text["linear_num_value_heads"]) if hybrid else 0
            r_keys = int(text["linear_num_key_heads"]) * int(text["linear_key_head_dim"]) if hybrid else 0
            r_values = r_heads * int(text["linear_value_head_dim"]) if hybrid else 0
            gemma = str(text.get("model_type", "")).startswith("gemma")  # always tied, and its files may leave it out
            inner = int(text.get("moe_intermediate_size") or 0) if experts else int(text["intermediate_size"])
            return cls(
                layers=int(text["num_hidden_layers"]),
                width=width,
                heads=heads,
                kv_heads=int(text.get("num_key_value_heads") or heads),
                head_width=int(text.get("head_dim") or width // heads),
                inner=inner or int(text["intermediate_size"]),
                vocabulary=int(text["vocab_size"]),
                tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", gemma))),
                bits=int(quantised.get("bits", 0)),
                group=int(quantised.get("group_size", 64)),
                experts=experts,
                experts_used=int(text.get("num_experts_per_tok") or 0),
                linear_every=int(text.get("full_attention_interval") or 0) if hybrid else 0,
                recurrent=(r_heads, r_keys, r_values),
                fused=text.get("model_type") == "phi3",
                context=int(text.get("max_position_embeddings", 4_096)),
            )
        except (KeyError, TypeError, ValueError) as error:
            what = f"config.json lacks the model's dimensions ({error})"
            raise ConfigError(what, where=where, fix="name a decoder's folder") from error

    @property
    def attending(self) -> int:
        """Blocks that keep keys and values."""
        return self.layers // self.linear_every if self.linear_every else self.layers

    @property
    def kv_width(self) -> int:
        """Numbers that one token takes in the KV cache of one attending block."""
        return 2 * self.kv_heads * self.head_width

    def linears(self, block: int) -> list[Linear]:
        """The linear layers of one block."""
        d, queries, keys = self.width, self.heads * self.head_width, self.kv_heads * self.head_width
        if self.linear_every and (block + 1) % self.linear_every:
            heads, k, v = self.recurrent
            attention = [("qkv", d, 2 * k + v, 1), ("z", d, v, 1), ("b", d, heads, 1), ("a", d, heads, 1)]
            found: list[Linear] = [(f"linear_attn.in_proj_{n}", i, o, c) for n, i, o, c in attention]
            found.append(("linear_attn.out_proj", v, d, 1))
        elif self.fused:
            found = [("self_attn.qkv_proj", d, queries + 2 * keys, 1), ("self_attn.o_proj", queries, d, 1)]
        else:
            gated = 2 if self.linear_every else 1  # hybrid models' attention has a gate beside its queries
            found = [("self_attn.q_proj", d, gated * queries, 1), ("self_attn.k_proj", d, keys, 1)]
            found += [("self_attn.v_proj", d, keys, 1), ("self_attn.o_proj", queries, d, 1)]
        if self.fused:
            return [*found, ("mlp.gate_up_proj", d, 2 * self.inner, 1), ("mlp.down_proj", self.inner, d, 1)]
        path, count = ("mlp.switch_mlp", self.experts) if self.experts else ("mlp", 1)
        found += [(f"{path}.{name}_proj", d, self.inner, count) for name in ("gate", "up")]
        found.append((f"{path}.down_proj", self.inner, d, count))
        return [*found, ("mlp.gate", d, self.experts, 1)] if self.experts else found

    @property
    def trunk_parameters(self) -> int:
        """Weights inside the blocks, all experts."""
        return sum(i * o * n for block in range(self.layers) for _, i, o, n in self.linears(block))

    @property
    def active_parameters(self) -> int:
        """Weights inside the blocks that are used for one token."""
        share = self.experts_used / self.experts if self.experts else 1.0
        linears = (each for block in range(self.layers) for each in self.linears(block))
        return int(sum(i * o * (n * share if n > 1 else 1) for _, i, o, n in linears))

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding, and of the output head if it is not tied."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights except norms and biases."""
        return self.trunk_parameters + self.embedding_parameters

    def weight_bytes(self, width: int) -> float:
        """Bytes of the weights at `width` bytes per number; quantized ones with a scale and a bias per group."""
        each = self.bits / 8 + 2 * width / self.group if self.bits else width
        return self.parameters * each

    def adapter_parameters(self, cfg: AdapterConfig) -> int:
        """Number of trained weights."""
        if cfg.kind == "full":
            return self.parameters
        first = 0 if cfg.layers < 0 else max(0, self.layers - cfg.layers)
        total = 0
        for block in range(first, self.layers):
            for name, i, o, n in self.linears(block):
                if cfg.keys is None or name in cfg.keys:
                    total += n * (cfg.rank * (i + o) + (o if cfg.kind == "dora" else 0))
        return total
