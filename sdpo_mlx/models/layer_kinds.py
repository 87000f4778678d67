"""The layer at each place of a model by its kind: attention, latent attention, recurrences, convolutions."""

from __future__ import annotations

from sdpo_mlx.models.layer_dimensions import Common, Layer, Text, entry, feed_forward, is_sparse, number

# Architectures whose caches hold the latent state, not keys and values.
COMPRESSED = {"deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_linear", "kimi_k25", "kimi_k3",
              "longcat_flash", "longcat_flash_ngram", "mistral4", "youtu_llm", "bailing_moe_v3"}  # fmt: skip


def layer(common: Common, index: int) -> Layer:
    """Return the layer at this place."""
    text, kind = common.text, common.kind
    pattern = text.get("hybrid_override_pattern")
    if pattern:  # each layer is a mixer or a feed-forward layer
        name = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}[pattern[index]]
        if name in {"mlp", "moe"}:
            return feed_forward(common, index, sparse=name == "moe")
        return mamba2(common) if name == "mamba" else attention(common, index)
    if kind in {"mamba", "mamba2"}:
        return mamba(common) if kind == "mamba" else mamba2(common)
    mixer = _mixer(common, index)
    return mixer + feed_forward(common, index, sparse=is_sparse(common, index))


def _mixer(common: Common, index: int) -> Layer:
    text, kind = common.text, common.kind
    listed = entry(text, index, "layer_types", "layers_block_type")
    if kind == "falcon_h1":
        return attention(common, index) + mamba2(common)
    if kind in {"kimi_linear", "kimi_k3"} and index + 1 in text["linear_attn_config"]["kda_layers"]:
        return kimi_delta(text, common.width)
    if kind == "jamba":
        attends = index % number(text, "attn_layer_period") == number(text, "attn_layer_offset")
        return attention(common, index) if attends else mamba(common)
    every = number(text, "full_attention_interval", default=4)
    linear = listed == "linear_attention" if listed else bool((index + 1) % every)
    if linear and "linear_num_value_heads" in text:
        return gated_delta(common)
    return mamba2(common) if listed == "mamba" else _attention_or_convolution(common, index, listed)


def _attention_or_convolution(common: Common, index: int, listed: str | None) -> Layer:
    text = common.text
    if common.kind.startswith("lfm2"):
        attending = text.get("full_attn_idxs")
        attends = index in attending if attending else listed == "full_attention"
        return attention(common, index) if attends else short_convolution(common)
    latent = text.get("kv_lora_rank") and common.kind != "bailing_moe_linear"
    return latent_attention(common) if latent else attention(common, index)


def window_of(common: Common, index: int) -> int | None:
    """Return how many tokens the layer's attention sees, None for all."""
    text, kind = common.text, common.kind
    size = number(text, "sliding_window", "sliding_window_size", "attention_window_size", "window_size", default=0)
    listed = entry(text, index, "layer_types")
    if listed is None and kind == "gpt_oss":
        listed = "full_attention" if index % 2 else "sliding_attention"
    if listed is not None:
        return size or None if listed in {"sliding_attention", "local", "sliding"} else None
    every = text.get("sliding_window_pattern")
    if kind.startswith(("gemma3", "gemma4", "cohere2")) and every is None:
        every = {"cohere2": 4}.get(kind, 6)
    if isinstance(every, str):
        return size or None if every[index % len(every)] == "L" else None
    return (size or None) if every and (index + 1) % int(every) else None


def attention(common: Common, index: int) -> Layer:
    """Attention with separate or joined projections."""
    text, kind, d = common.text, common.kind, common.width
    window = window_of(common, index)
    width, kv_heads = common.head_width, common.kv_heads
    if kind.startswith("gemma4") and window is None:
        width = number(text, "global_head_dim", default=width)
        kv_heads = number(text, "num_global_key_value_heads", default=kv_heads)
    queries, keys = common.heads * width, kv_heads * width
    gated = 2 if kind.startswith(("qwen3_next", "qwen3_5")) else 1
    joined = {"phi3": "qkv_proj", "phi3small": "query_key_value", "gpt2": "c_attn", "gpt_neox": "query_key_value"}
    values = 1 if kind.startswith("gemma4") and window is None and text.get("attention_k_eq_v") else 2
    if kind in joined:
        found = [(f"self_attn.{joined[kind]}", d, queries + 2 * keys, 1)]
    else:
        names = ("k", "v")[:values]
        found = [("self_attn.q_proj", d, gated * queries, 1), *((f"self_attn.{n}_proj", d, keys, 1) for n in names)]
    shared = number(text, "num_kv_shared_layers", default=0)
    borrows = bool(shared) and index >= common.layers - shared  # keys and values of a layer below
    across = text.get("use_cla") and index % number(text, "cla_share_factor", default=2)
    if across or (borrows and kind.startswith("gemma4")):
        found = found[:1]
    if kind in {"afmoe", "muse_glimmer"}:
        found.append(("self_attn.gate_proj", d, queries, 1))
    found.append(("self_attn.o_proj", queries, d, 1))
    held = 0 if borrows or across else 2 * keys
    return Layer("attention", tuple(found), 0, held, window, 0, common.heads, queries)


def latent_attention(common: Common) -> Layer:
    """Attention through a narrow latent state, which mlx-lm caches for some architectures; else keys and values."""
    text, d, heads = common.text, common.width, common.heads
    rank, rope = number(text, "kv_lora_rank"), number(text, "qk_rope_head_dim")
    plain, values = number(text, "qk_nope_head_dim"), number(text, "v_head_dim", default=common.head_width)
    queries, low = heads * (plain + rope), number(text, "q_lora_rank", default=0)
    found = [("self_attn.kv_a_proj_with_mqa", d, rank + rope, 1), ("self_attn.o_proj", heads * values, d, 1)]
    found += [("self_attn.q_a_proj", d, low, 1), ("self_attn.q_b_proj", low, queries, 1)] if low else [
        ("self_attn.q_proj", d, queries, 1)
    ]  # fmt: skip
    compressed = common.kind in COMPRESSED
    up = rank * heads * (plain + values)
    if not compressed:
        found.append(("self_attn.kv_b_proj", rank, heads * (plain + values), 1))
    if text.get("index_topk") and common.kind in {"deepseek_v32", "glm_moe_dsa"}:  # chooses the tokens to attend to
        count, size = number(text, "index_n_heads"), number(text, "index_head_dim")
        chooses = (("wq_b", low, count * size), ("wk", d, size), ("weights_proj", d, count))
        found += [(f"self_attn.indexer.{name}", i, o, 1) for name, i, o in chooses]
    held = rank + rope if compressed else heads * (plain + rope + values)
    kind = "latent cache" if compressed else "latent"
    return Layer(kind, tuple(found), up * compressed, held, None, 0, heads, queries)


def gated_delta(common: Common) -> Layer:
    """A gated delta network (Qwen3-Next, Qwen3.5, OLMo-hybrid)."""
    text, d = common.text, common.width
    heads, key_heads = number(text, "linear_num_value_heads"), number(text, "linear_num_key_heads")
    key_width, value_width = number(text, "linear_key_head_dim"), number(text, "linear_value_head_dim")
    k, v = key_heads * key_width, heads * value_width
    if common.kind == "olmo_hybrid":
        parts = [("q_proj", k), ("k_proj", k), ("v_proj", v), ("a_proj", heads), ("b_proj", heads), ("g_proj", v)]
        out = "o_proj"
    elif common.kind == "qwen3_next":
        parts, out = [("in_proj_qkvz", 2 * k + 2 * v), ("in_proj_ba", 2 * heads)], "out_proj"
    else:
        parts = [("in_proj_qkv", 2 * k + v), ("in_proj_z", v), ("in_proj_b", heads), ("in_proj_a", heads)]
        out = "out_proj"
    found = [(f"linear_attn.{name}", d, width, 1) for name, width in parts]
    kernel = number(text, "linear_conv_kernel_dim", default=4)
    state = heads * key_width * value_width + (kernel - 1) * (2 * k + v)
    other = kernel * (2 * k + v)
    held = 2 * max(k, v) + v  # queries and keys are repeated for each value head
    return Layer("delta", (*found, (f"linear_attn.{out}", v, d, 1)), other, 0, None, state, 0, held)


def kimi_delta(text: Text, d: int) -> Layer:
    """Kimi's gated delta network, with a gate per channel."""
    own = text["linear_attn_config"]
    heads, width = number(own, "num_heads"), number(own, "head_dim")
    inner, kernel = heads * width, number(own, "short_conv_kernel_size", default=4)
    parts = (
        [(f"{n}_proj", d, inner) for n in "qkv"]
        if text["model_type"] == "kimi_linear"
        else [("qkv_proj", d, 3 * inner)]
    )
    parts += [("f_a_proj", d, width), ("f_b_proj", width, inner), ("b_proj", d, heads)]
    parts += (
        [("g_proj", d, inner)]
        if own.get("use_full_rank_gate")
        else [("g_a_proj", d, width), ("g_b_proj", width, inner)]
    )
    found = [(f"self_attn.{name}", i, o, 1) for name, i, o in (*parts, ("o_proj", inner, d))]
    state = heads * width * width + 3 * (kernel - 1) * inner
    return Layer("delta", tuple(found), 3 * kernel * inner + inner, 0, None, state, 0, 3 * inner, chunk=16)


def mamba(common: Common) -> Layer:
    """A Mamba layer (Mamba, Jamba)."""
    text, d = common.text, common.width
    expand = number(text, "mamba_expand", "expand", default=2)
    inner = number(text, "intermediate_size", default=expand * d) if common.kind == "mamba" else expand * d
    size = number(text, "mamba_d_state", "state_size", default=16)
    rank = number(text, "mamba_dt_rank", "time_step_rank", default=-(-d // 16))
    kernel = number(text, "mamba_d_conv", "conv_kernel", default=4)
    parts = [
        ("in_proj", d, 2 * inner),
        ("x_proj", inner, rank + 2 * size),
        ("dt_proj", rank, inner),
        ("out_proj", inner, d),
    ]
    other = inner * (size + kernel + 3)
    found = tuple((f"mixer.{name}", i, o, 1) for name, i, o in parts)
    return Layer("loop", found, other, 0, None, inner * (size + kernel - 1), 0, 2 * inner, chunk=1)


def mamba2(common: Common) -> Layer:
    """A Mamba 2 layer (Mamba 2, Nemotron-H, Granite 4, Falcon-H1)."""
    text, d = common.text, common.width
    heads = number(text, "mamba_n_heads", "mamba_num_heads", "num_heads")
    width = number(text, "mamba_d_head", "mamba_head_dim", "head_dim")
    inner = number(text, "mamba_d_ssm", default=heads * width)
    groups, size = (
        number(text, "mamba_n_groups", "n_groups", default=1),
        number(text, "mamba_d_state", "ssm_state_size", "state_size"),
    )
    kernel = number(text, "mamba_d_conv", "conv_kernel", default=4)
    mixed = inner + 2 * groups * size
    found = (("mixer.in_proj", d, inner + mixed + heads, 1), ("mixer.out_proj", inner, d, 1))
    held = inner * size + (kernel - 1) * mixed
    return Layer("ssm", found, mixed * (kernel + 1), 0, None, held, heads, mixed, chunk=256)


def short_convolution(common: Common) -> Layer:
    """A gated short convolution (LFM2)."""
    d, kernel = common.width, number(common.text, "conv_L_cache", default=3)
    found = (("conv.in_proj", d, 3 * d, 1), ("conv.out_proj", d, d, 1))
    return Layer("conv", found, d * kernel, 0, None, d * (kernel - 1), 0, 3 * d)
