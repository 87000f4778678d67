"""Compare planned and measured memory of a step: `python benchmarks/memory.py`.

Small random models of several shapes sample and learn once. The table shows each phase's peak by MLX's counters and the
value of `sdpo plan` for the same work. The plan's coefficients were fitted on the twelve shapes of `--shapes fit`.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from reporting import distill_sample, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

PHASES = ("generate", "teacher", "learn")


def qwen(
    layers: int = 4, width: int = 256, heads: int = 4, keys: int = 2, inner: int = 768, vocabulary: int = 64
) -> Any:
    """Return the configuration of a Qwen3 of this shape, with heads of width 64."""
    return {
        "model_type": "qwen3",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": 64,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8_192,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
    }


def hybrid(heads: tuple[int, int], width: int, layers: int = 4, inner: int = 512) -> Any:
    """Return the configuration of a Qwen3.5 with so many key and value heads of this width."""
    attention = {**qwen(layers, inner=inner), "num_attention_heads": 2, "num_key_value_heads": 1}
    delta = {
        "model_type": "qwen3_5_text",
        "full_attention_interval": 4,
        "linear_num_key_heads": heads[0],
        "linear_num_value_heads": heads[1],
        "linear_key_head_dim": width,
        "linear_value_head_dim": width,
        "linear_conv_kernel_dim": 4,
    }
    return {"model_type": "qwen3_5", "vocab_size": 64, "text_config": {**attention, **delta}}


def mixture(layers: int, experts: int, used: int, inner: int) -> Any:
    """Return the configuration of a Qwen3 mixture of experts."""
    sparse = {"num_experts": experts, "num_experts_per_tok": used, "moe_intermediate_size": inner}
    more = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
    return {**qwen(layers), **sparse, **more, "model_type": "qwen3_moe"}


def mamba(heads: int, inner: int = 512) -> Any:
    """Return the configuration of a Granite hybrid: three Mamba 2 layers with so many heads of 64, one of attention."""
    scales = {"embedding_multiplier": 1.0, "attention_multiplier": 0.1, "logits_scaling": 1.0}
    state = {"mamba_n_heads": heads, "mamba_d_head": 64, "mamba_d_state": 64, "mamba_d_conv": 4, "mamba_n_groups": 1}
    flags = {"attention_bias": False, "mamba_proj_bias": False, "mamba_conv_bias": True}
    return {
        **qwen(4, inner=inner),
        **scales,
        **state,
        **flags,
        "model_type": "granitemoehybrid",
        "residual_multiplier": 0.5,
        "layer_types": ["mamba", "mamba", "mamba", "attention"],
        "shared_intermediate_size": inner,
        "position_embedding_type": "rope",
        "time_step_limit": [0.001, 100.0],
    }


def mamba1(layers: int, width: int, state: int = 16) -> Any:
    """Return the configuration of a Mamba."""
    return {
        "model_type": "mamba",
        "vocab_size": 64,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "state_size": state,
        "num_hidden_layers": layers,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": -(-width // 16),
        "tie_word_embeddings": True,
    }


def latent(model_type: str, layers: int, heads: int = 4, rank: int = 128, inner: int = 768) -> Any:
    """Return the configuration of a DeepSeek V3 or a MiniCPM 3 with dense layers and latent attention."""
    attention = {"kv_lora_rank": rank, "q_lora_rank": 128, "qk_rope_head_dim": 32, "qk_nope_head_dim": 64}
    experts = {
        "rope_scaling": None,
        "n_routed_experts": None,
        "first_k_dense_replace": layers,
        "num_experts_per_tok": None,
    }
    scales = {"dim_model_base": 256, "scale_depth": 1.4, "scale_emb": 1.0}
    scales["rope_scaling"] = {"original_max_position_embeddings": 8_192, "short_factor": [1.0], "long_factor": [1.0]}
    return {
        **qwen(layers, heads=heads, keys=heads, inner=inner),
        **attention,
        **(experts if model_type == "deepseek_v3" else scales),
        "model_type": model_type,
        "v_head_dim": 64,
        "attention_bias": False,
        "tie_word_embeddings": False,
    }


def short_convolution(width: int, inner: int, attends: int | None = 3) -> Any:
    """Return the configuration of an LFM2 of 4 layers, of which one attends."""
    own = {"block_dim": width, "block_ff_dim": inner, "block_auto_adjust_ff_dim": False, "block_multiple_of": 64}
    more = {"block_ffn_dim_multiplier": 1.0, "conv_L_cache": 3, "conv_bias": False, "norm_eps": 1e-5}
    attention = {"full_attn_idxs": [attends], "num_attention_heads": width // 64, "num_key_value_heads": width // 128}
    return {**qwen(4, width, inner=inner), **own, **more, **attention, "model_type": "lfm2"}


# configuration, prompt tokens, rollouts, tokens per rollout, teacher context tokens
CHECK = {
    "49,152 words": (qwen(2, vocabulary=49_152), 128, 2, 8, 160),
    "many words": (qwen(4, 256, vocabulary=151_936), 128, 4, 16, 300),
    "deep": (qwen(16, 192, 3, 1, 512, 8_000), 256, 4, 64, 500),
    "wide": (qwen(2, 768, 12, 4, 2_304, 32_000), 512, 4, 32, 700),
}
# The same for other kinds of layers
KINDS = {
    "gated delta, short": (hybrid((4, 4), 64), 128, 2, 32, 160),
    "gated delta": (hybrid((4, 4), 64), 256, 4, 64, 300),
    "gated delta, value heads": (hybrid((4, 8), 64), 256, 4, 64, 300),
    "gated delta, 128 wide": (hybrid((4, 4), 128), 256, 2, 128, 300),
    "mixture of experts": (mixture(4, 8, 2, 256), 256, 4, 64, 300),
    "mixture, 4 used": (mixture(2, 8, 4, 256), 256, 4, 64, 300),
    "Mamba 2": (mamba(8), 256, 4, 64, 300),
    "Mamba 2, 16 heads": (mamba(16, 256), 256, 4, 64, 300),
    "Mamba 2, one rollout": (mamba(8), 512, 1, 128, 600),
    "Mamba 1": (mamba1(4, 256), 256, 4, 64, 300),
    "Mamba 1, state 32": (mamba1(2, 128, 32), 128, 4, 32, 160),
    "Mamba 1, one rollout": (mamba1(3, 256), 256, 1, 64, 320),
    "latent, compressed": (latent("deepseek_v3", 4), 256, 4, 64, 300),
    "latent, compressed, 8 heads": (latent("deepseek_v3", 2, 8, 256), 512, 2, 64, 600),
    "latent, keys and values": (latent("minicpm3", 4), 256, 4, 64, 300),
    "latent, keys, 8 heads": (latent("minicpm3", 2, 8), 512, 2, 64, 600),
    "convolution": (short_convolution(256, 768), 256, 4, 64, 300),
    "convolution, width 512": (short_convolution(512, 512), 256, 4, 64, 300),
    "convolution, one rollout": (short_convolution(256, 768), 512, 1, 128, 600),
}
FIT = {
    "plain": (qwen(), 256, 4, 64, 300),
    "8 blocks": (qwen(8), 256, 4, 64, 300),
    "one answer": (qwen(2), 512, 1, 32, 300),
    "width 512": (qwen(2, 512), 256, 4, 64, 300),
    "inner 2048": (qwen(2, inner=2_048), 256, 4, 64, 300),
    "8 heads": (qwen(2, heads=8), 256, 4, 64, 300),
    "4 keys": (qwen(2, keys=4), 256, 4, 64, 300),
    "long answers": (qwen(2, 128, 8, 2, 256), 128, 8, 192, 800),
    "2 heads": (qwen(2, 512, 2, 1, 512), 64, 4, 128, 64),
    "long context": (qwen(3, 384, 6, 6, 1_024), 512, 2, 128, 1_024),
    "narrow": (qwen(2, 64, 2, 1, 2_048), 64, 8, 64, 64),
    "words": (qwen(vocabulary=8_000), 64, 8, 192, 96),
}


def main() -> None:
    """Print the table; write it as JSON to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", choices=["check", "kinds", "fit"], default="check")
    parser.add_argument("--only", default="", metavar="TEXT", help="measure shapes whose name contains this")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name, case in {"check": CHECK, "kinds": KINDS, "fit": FIT}[options.shapes].items():
        if options.only not in name:
            continue
        for keep in (False, True):
            rows.append({"shape": name, "keep": keep, **compared(*case, keep=keep)})
            print(line(rows[-1]), flush=True)
    write_json(options.out, rows)


def line(row: dict[str, Any]) -> str:
    """Return one row as text."""
    how = "one graph" if row["keep"] else "by layer"
    parts = [
        f"{p} {row['measured'][p] / 2**20:.0f} MB, plan {row['planned'][p] / row['measured'][p]:.2f}" for p in PHASES
    ]
    return f"{row['shape']:<24} {how:<9} " + "; ".join(parts)


def compared(
    config: dict[str, Any], prompt: int, group: int, answer: int, context: int, *, keep: bool
) -> dict[str, Any]:
    """Return the peak of each phase in bytes, measured and planned."""
    from sdpo_mlx.backends.memory_plan import memory, work_of
    from sdpo_mlx.config import Config
    from sdpo_mlx.models.dimensions import ModelDims

    cfg = Config.model_validate(
        {
            "model": {"dtype": "float32"},
            "rollout": {"max_tokens": answer, "group_size": group, "problems_per_step": 1, "concurrency": group},
            "train": {"micro_batch_tokens": 65_536, "grad_checkpoint": not keep},
        }
    )
    shape = ModelDims.of(config, "benchmark")
    planned = memory(shape, cfg, work_of(cfg, prompt, context, 4))
    with TemporaryDirectory() as folder:
        measured = step(Path(folder), config, cfg, (prompt, context))
    return {"measured": measured, "planned": {phase: planned.peak(phase) for phase in PHASES}}


def step(folder: Path, config: dict[str, Any], cfg: Any, lengths: tuple[int, int]) -> dict[str, int]:
    """Sample one group and learn from it; return the peak of each phase by MLX's counters."""
    import mlx.core as mx
    from small_models import write_config

    from sdpo_mlx.backends.base import SamplingParams
    from sdpo_mlx.backends.mlx.policy import MLXPolicy

    gc.collect()  # what the shape before left in cycles
    others = mx.get_active_memory()  # arrays of whatever else runs in this process
    write_config(folder, config)
    policy, rng = MLXPolicy(folder, cfg.model, cfg.teacher, cfg.train), np.random.default_rng(0)
    policy.load_state(policy.state())  # gives the teacher its own arrays
    prompt, context = (rng.integers(config["vocab_size"], size=length).astype(np.int32) for length in lengths)
    policy.memory()
    sampling = SamplingParams(cfg.rollout.max_tokens, 1.0, 1.0, frozenset(), cfg.rollout.concurrency)
    found = [each for _, _, each in policy.generate([prompt], sampling, [list(range(cfg.rollout.group_size))])]
    samples = [distill_sample(index, prompt, context, each.ids_T, each.logps_T) for index, each in enumerate(found)]
    policy.learn(samples, cfg.objective, 1e-4)
    return {phase: peak - others for phase, peak in policy.memory().items() if phase in PHASES}


if __name__ == "__main__":
    main()
