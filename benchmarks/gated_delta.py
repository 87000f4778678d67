"""Compare learning gated delta networks with mlx-lm's loop over tokens: `python benchmarks/gated_delta.py --out FILE`.

Random layers with the widths of Qwen3.5-0.8B (hidden 1,024, inner 3,584, 16 linear heads of 128 x 128, 8 attention
heads of 256, 2 key heads) in float32. *Block*: one gated delta layer from its kept input, forward and gradient.
*Model*: teacher and student of 4 layers, three of them gated delta, layer by layer, a vocabulary of 2,000. One rollout.
*Recurrence*: that of the block alone, with its gradient.
Both sides alternate in this process (`benchmarks/performance.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from performance import Work, beside, line, opened, samples, where
from reporting import write_json

from sdpo_mlx.backends.mlx import policy as policy_module
from sdpo_mlx.config import ObjectiveConfig

import mlx.core as mx  # isort: skip
from mlx_lm.models import qwen3_5  # isort: skip
from mlx.utils import tree_flatten, tree_unflatten  # isort: skip

WIDTHS = {
    "model_type": "qwen3_5_text",
    "vocab_size": 2_000,
    "hidden_size": 1_024,
    "intermediate_size": 3_584,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8_192,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "full_attention_interval": 4,
    "linear_num_value_heads": 16,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
PROMPT = 32
AIM = "time and peak at most 0.25"


def main() -> None:
    """Measure all cases, or those whose name begins with `--only`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case, work in cases():
        if case.startswith(options.only):
            row = beside(work, loop_over_tokens(work), options.rounds)
            rows.append({"row": "gated delta / loop over tokens", "case": case, "aim": AIM, **row})
            print(line(rows[-1]), flush=True)
            write_json(options.out, {"where": where(), "rounds": options.rounds, "rows": rows})


def cases() -> Iterator[tuple[str, Work]]:
    """Return name and work of each case, ours; one model serves all."""
    policy = opened({"model_type": "qwen3_5", "text_config": WIDTHS})
    for tokens in (512, 1_024):
        yield f"recurrence, {tokens} tokens", recurrence(policy, tokens)
    for tokens in (512, 1_024):
        yield f"block, {tokens} tokens", block(policy, tokens)
    for tokens in (512, 1_024):
        given = samples(WIDTHS["vocab_size"], PROMPT, 1, tokens - PROMPT, PROMPT)
        yield f"model of 4 layers, {tokens} tokens", lambda given=given: policy.learn(given, ObjectiveConfig(), 1e-5)


def recurrence(policy: Any, tokens: int) -> Work:
    """Return the gradient of a layer's recurrence with respect to all of its arguments but the gate's parameters."""
    keys = mx.random.split(mx.random.key(0), 6)
    q, k, v = (mx.random.normal((1, tokens, 16, 128), key=key) * 128**-0.5 for key in keys[:3])
    a, b = (mx.random.normal((1, tokens, 16), key=key) for key in keys[3:5])
    given = [q, k, v, a, b, mx.zeros((1, 16, 128, 128))]
    mx.eval(given)

    def run(*each: mx.array) -> list[mx.array]:
        *inputs, state = each
        return list(qwen3_5.gated_delta_update(*inputs, mx.zeros(16), mx.zeros(16), state, use_kernel=False))

    def step() -> None:
        with policy_module.efficient_recurrence(policy.model.whole):
            mx.eval(mx.vjp(run, given, [v, given[-1]])[1])

    return step


def block(policy: Any, tokens: int) -> Work:
    """Return a step of the first layer: its output, and its gradient for a given one of the output."""
    layer = policy.model.trunk.blocks[0].layer
    entering = mx.random.normal((1, tokens, WIDTHS["hidden_size"]), key=mx.random.key(0))
    names, weights = zip(*tree_flatten(layer.trainable_parameters()), strict=True)
    mx.eval(entering, weights)

    def run(*arrays: mx.array) -> list[mx.array]:
        layer.update(tree_unflatten(list(zip(names, arrays[1:], strict=True))))
        return [layer(arrays[0])]

    def step() -> None:
        layer.train()
        with policy.learning():
            mx.eval(run(entering, *weights))
            mx.eval(mx.vjp(run, [entering, *weights], [entering])[1])
        layer.update(tree_unflatten(list(zip(names, weights, strict=True))))
        layer.eval()

    return step


def loop_over_tokens(work: Work) -> Work:
    """Return the same work with mlx-lm's recurrence."""

    def kept(_: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def run() -> None:
        with patch.object(policy_module, "efficient_recurrence", kept):
            work()

    return run


if __name__ == "__main__":
    main()
