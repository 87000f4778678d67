"""The model card of the embedded model, with the figures measured when it was built."""

from __future__ import annotations

from collections.abc import Mapping

from gate import Share
from pretrain import CONFIG, Recipe

INTRODUCTION = """# tiny: the embedded model of sdpo-mlx

A language model of 366 thousand parameters for one purpose: to show, within seconds and offline, what
self-distillation policy optimization does. It answers `Write f(x): sort, reverse` with one line an
operation, `x = sort.quick(x)`, from a library whose function names only the environment knows. It was
made from nothing by `examples/tiny_model/build.py` (`make tiny-model`): synthetic episodes, each with
a fresh random library, so that no name is right in general; it knows how likely each name is and how
to follow a solution or feedback in its context.

It is not a general language model. Any text encodes (byte-level BPE, 640 tokens), but on anything
other than this task it writes nonsense. It has seen no data about people and nothing from the web.
"""


def model_card(shares: Mapping[str, Share], seconds: float) -> str:
    """Return the card as Markdown; `seconds` is the duration of the build."""
    rows = "\n".join(f"| {name} | {share.rate:.4f} | {share.samples} |" for name, share in shares.items())
    shape = (
        f"Qwen3 architecture: width {CONFIG['hidden_size']}, {CONFIG['num_hidden_layers']} layers, "
        f"{CONFIG['num_attention_heads']} heads and {CONFIG['num_key_value_heads']} key-value heads of "
        f"{CONFIG['head_dim']}, feed-forward {CONFIG['intermediate_size']}, tied embeddings, "
        f"context {CONFIG['max_position_embeddings']}. Weights in float16, chat template ChatML."
    )
    made = f"Pretrained for {Recipe().steps} steps in about {round(seconds / 60)} minutes on this build's machine."
    return "\n".join(
        [
            INTRODUCTION,
            shape,
            made,
            "",
            "Before any reinforcement, sampled at temperature 1 on the held-out problems:",
            "",
            "| measured | success rate | samples |",
            "|---|---|---|",
            rows,
            "",
            "License: MIT, as the project.",
            "",
        ]
    )
