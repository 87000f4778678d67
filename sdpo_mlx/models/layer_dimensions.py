"""What one layer holds, the keys that all architectures share, and the feed-forward part.

Names of keys and of layers are those of mlx-lm's architectures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Linear = tuple[str, int, int, int]  # name inside its layer, inputs, outputs, how many (experts)
Text = Mapping[str, Any]

UNGATED = {  # feed-forward layers of two matrices
    "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "phi", "phixtral", "starcoder2", "nemotron", "nemotron_h", "nanochat",
    "apertus",
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """What one layer holds; numbers, not bytes.

    `keys_values` are kept per token (of the last `window` tokens, None: of all), `state` per row whatever its length.
    """

    kind: str  # attention, latent, latent cache, delta, ssm, loop (Mamba 1), conv, or none
    linears: tuple[Linear, ...] = ()
    other: int = 0  # weights outside linear layers: convolutions, routers, gates
    keys_values: int = 0
    window: int | None = None
    state: int = 0
    heads: int = 0  # that compute attention scores
    queries: int = 0  # width of all attention heads, or of what enters a recurrence
    inner: int = 0  # feed-forward width that one token uses
    chunk: int = 64  # tokens between two states that the backward pass keeps

    def __add__(self, more: Layer) -> Layer:
        """The layer with both parts."""
        return Layer(
            self.kind if self.kind != "none" else more.kind,
            self.linears + more.linears,
            self.other + more.other,
            self.keys_values + more.keys_values,
            self.window or more.window,
            self.state + more.state,
            self.heads + more.heads,
            max(self.queries, more.queries),
            max(self.inner, more.inner),
            self.chunk if self.kind != "none" else more.chunk,
        )


def number(text: Text, *names: str, default: int | None = None) -> int:
    """Return the first of these keys that is a number; KeyError if there is none and no default."""
    for name in names:
        value = text.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return int(value)
    if default is None:
        raise KeyError(names[0])
    return default


def entry(text: Text, index: int, *names: str) -> Any:
    """Return a layer's entry of the first of these keys that is a list for all layers, otherwise None."""
    for name in names:
        value = text.get(name)
        if isinstance(value, (Sequence)) and len(value) > 0:
            return value[index % len(value)]
    return None


@dataclass(frozen=True)
class Common:
    """Dimensions that all layers share, under the names of any architecture."""

    text: Text
    kind: str = field(init=False)
    layers: int = field(init=False)
    width: int = field(init=False)
    heads: int = field(init=False)
    kv_heads: int = field(init=False)
    head_width: int = field(init=False)
    inner: int = field(init=False)

    def __post_init__(self) -> None:
        """Read the keys; KeyError or TypeError if the configuration lacks one."""
        text, put = self.text, object.__setattr__
        put(self, "kind", str(text.get("model_type", "")).removesuffix("_text"))
        put(
            self,
            "layers",
            number(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_transformer_layers"),
        )
        width = number(text, "hidden_size", "n_embd", "d_model", "hidden_dim", "model_dim")
        free = self.kind in {"mamba", "mamba2", "rwkv7"}  # no attention
        heads = number(text, "num_attention_heads", "n_head", "num_heads", "n_heads", default=1 if free else None)
        kv = number(text, "num_key_value_heads", "num_kv_heads", "n_kv_heads", "multi_query_groups", default=heads)
        attention = text.get("attn_config")
        if isinstance(attention, Mapping):
            kv = number(attention, "kv_n_heads", default=kv)
        put(self, "width", width)
        put(self, "heads", heads)
        if self.kind in {"gpt2", "gpt_neox", "qwen"}:
            kv = heads
        put(self, "kv_heads", 1 if self.kind == "gpt_bigcode" and text.get("multi_query", True) else kv)
        put(self, "head_width", number(text, "head_dim", "hidden_size_per_head", "kv_channels", default=width // heads))
        inner = number(
            text,
            "intermediate_size",
            "n_inner",
            "ffn_hidden_size",
            "ff_intermediate_size",
            "block_ff_dim",
            default=4 * width,
        )
        put(self, "inner", inner // 2 if self.kind == "qwen" else inner)


def experts_of(text: Text) -> tuple[int, int]:
    """Return how many experts a sparse layer has, and how many a token uses; 0 without experts."""
    own = text.get("ffn_config")
    source: Text = own if isinstance(own, Mapping) else text
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    used = (
        "num_experts_per_tok",
        "num_experts_per_token",
        "moe_topk",
        "moe_k",
        "moe_top_k",
        "top_k_experts",
        "experts_per_token",
    )
    experts = number(source, *names, default=0)
    return experts, number(source, *used, default=1) if experts else 0


def is_sparse(common: Common, index: int) -> bool:
    """Return whether the layer at this place has experts."""
    text = common.text
    if common.kind.startswith("gemma4") and not text.get("enable_moe_block"):
        return False
    if not experts_of(text)[0] or index in (text.get("mlp_only_layers") or ()):
        return False
    if index < number(text, "first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", default=0):
        return False
    listed = entry(text, index, "is_moe_layer", "moe_layer_freq")
    if listed is not None:
        return bool(listed)
    if text.get("expert_layer_period"):
        return bool(index % number(text, "expert_layer_period") == number(text, "expert_layer_offset"))
    step = number(text, "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval", default=1)
    return (index + 1) % step == 0 if step else True


def feed_forward(common: Common, index: int, *, sparse: bool) -> Layer:
    """The feed-forward part: dense, or experts with shared ones."""
    text, d = common.text, common.width
    up = ("up",) if common.kind in UNGATED else ("gate", "up")
    both = common.kind.startswith("gemma4")  # experts beside the dense part
    found, wide = list[Linear](), 0
    if not sparse or both:
        wide = _dense_width(common, index)
        found = _matrices("mlp", up, d, wide, 1, joined=common.kind == "phi3")
    own = number(text, "hidden_size_per_layer_input", default=0)
    if own:
        found += [("per_layer_input_gate", d, own, 1), ("per_layer_projection", own, d, 1)]
    rank = number(text, "laurel_rank", default=0)
    if rank:
        found += [("laurel.linear_left", d, rank, 1), ("laurel.linear_right", rank, d, 1)]
    if sparse:
        experts, used = experts_of(text)
        nested = text.get("ffn_config")
        names = ("moe_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size")
        inner = number(nested if isinstance(nested, Mapping) else text, *names, default=common.inner)
        shared = _shared_width(common, inner)
        found += [*_matrices("mlp.switch_mlp", up, d, inner, experts), ("mlp.gate", d, experts, 1)]
        found += _matrices("mlp.shared_expert", up, d, shared, 1) if shared else []
        found += [("mlp.shared_expert_gate", d, 1, 1)] if text.get("shared_expert_intermediate_size") else []
        wide += used * inner + shared
    return Layer("none", tuple(found), inner=wide)


def _dense_width(common: Common, index: int) -> int:
    text = common.text
    listed = entry(text, index, "intermediate_size")
    if listed is not None:
        return int(listed)
    if common.kind.startswith("lfm2") and not experts_of(text)[0]:
        inner = number(text, "block_ff_dim", "intermediate_size")
        if text.get("block_auto_adjust_ff_dim", True):
            inner = int(float(text.get("block_ffn_dim_multiplier") or 1.0) * int(2 * inner / 3))
            multiple = number(text, "block_multiple_of", default=256)
            inner = -(-inner // multiple) * multiple
        return inner
    inner = number(text, "dense_intermediate_size", "intermediate_size_mlp", default=common.inner)
    if common.kind == "granitemoehybrid":
        return number(text, "shared_intermediate_size", default=inner)
    wide = common.kind.startswith("gemma4") and text.get("use_double_wide_mlp", True)
    doubled = wide and index >= common.layers - number(text, "num_kv_shared_layers", default=0)
    return 2 * inner if doubled else inner


def _shared_width(common: Common, inner: int) -> int:
    """Width of the experts that all tokens use, 0 without."""
    text = common.text
    if common.kind == "minimax":
        return 0
    if common.kind.startswith("llama4"):
        return inner
    width = number(text, "shared_expert_intermediate_size", "shared_intermediate_size", "share_expert_dim", default=0)
    names = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
    if common.kind == "hunyuan":
        inner = common.inner
    return width or number(text, *names, default=0) * number(text, "moe_shared_expert_intermediate_size", default=inner)


def _matrices(path: str, up: Sequence[str], d: int, inner: int, count: int, *, joined: bool = False) -> list[Linear]:
    if joined:
        return [(f"{path}.gate_up_proj", d, 2 * inner, count), (f"{path}.down_proj", inner, d, count)]
    return [*((f"{path}.{name}_proj", d, inner, count) for name in up), (f"{path}.down_proj", inner, d, count)]
