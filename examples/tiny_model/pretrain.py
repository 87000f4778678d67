"""Pretraining of the embedded model: 366 thousand parameters.

There is no validation set, because every episode is new, and there are no checkpoints.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from episodes import Episode, draw_episode
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.qwen3 import Model, ModelArgs
from tokenizer import END, START, VOCABULARY
from tokenizers import Tokenizer

from sdpo_mlx.core.seeding import derive, rng

CONTEXT = 1024
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "use_cache": True,
    "dtype": "float16",
}


@dataclass(frozen=True)
class Recipe:
    """Length and learning rate of the pretraining; token counts include padding."""

    steps: int = 1100
    episodes_per_step: int = 44
    micro_batches: int = 4
    rate: float = 3e-3
    warmup: int = 100
    floor: float = 0.02
    weight_decay: float = 0.01
    clip: float = 1.0
    prompt_weight: float = 0.5
    streams: int = 2  # one core each
    seed: int = 7


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids and the weight of each one's loss."""

    ids_BT: np.ndarray
    weights_BT: np.ndarray


def chat_text(prompt: str) -> str:
    """Return one user message and a generation prompt in the chat template."""
    return f"{START}user\n{prompt}{END}\n{START}assistant\n"


def new_model(seed: int) -> Model:
    """Return a new model with fixed random weights."""
    mx.random.seed(derive("tiny-model", seed) % 2**31)
    model = Model(ModelArgs.from_dict(CONFIG))
    mx.eval(model.parameters())
    return model


def pretrain(model: Model, tokenizer: Tokenizer, recipe: Recipe) -> None:
    """Train in place and print the loss."""
    optimizer = optim.AdamW(
        learning_rate=recipe.rate, betas=[0.9, 0.98], weight_decay=recipe.weight_decay, bias_correction=True
    )
    streams = [mx.new_stream(mx.cpu) for _ in range(recipe.streams)]
    started, shown = time.time(), []
    for step, batches in enumerate(_steps(tokenizer, recipe)):
        optimizer.learning_rate = _rate(step, recipe)
        shown.append(_train_step(model, optimizer, batches, recipe, streams))
        if (step + 1) % 50 == 0:
            loss, answer = (sum(column) / len(column) for column in zip(*shown, strict=True))
            print(f"step {step + 1}: loss {loss:.4f}, answers {answer:.4f}, {time.time() - started:.0f} s", flush=True)
            shown = []


def save_model(model: Model, folder: Path) -> None:
    """Write the weights in float16 under the names of mlx-lm and transformers."""
    weights = {name: weight.astype(mx.float16) for name, weight in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})


def _rate(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.rate * (recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * done)))


def _loss(model: Model, ids_BT: mx.array, weights_BT: mx.array) -> tuple[mx.array, mx.array]:
    """Return the weighted sum of the next-token losses, and its part on answers (weight 1)."""
    logits = model(ids_BT[:, :-1])
    losses = nn.losses.cross_entropy(logits, ids_BT[:, 1:])
    weights = weights_BT[:, 1:]
    return (losses * weights).sum(), (losses * (weights >= 1)).sum()


def _train_step(
    model: Model, optimizer: optim.Optimizer, batches: list[Batch], recipe: Recipe, streams: list[mx.Stream]
) -> tuple[float, float]:
    """Make one optimizer step over micro-batches of similar length; return the mean loss, and that of answers."""
    total = sum(float(batch.weights_BT[:, 1:].sum()) for batch in batches)
    answers = sum(int((batch.weights_BT[:, 1:] >= 1).sum()) for batch in batches)
    step = nn.value_and_grad(model, _loss)
    results = []
    for at, batch in enumerate(batches):
        with mx.stream(streams[at % len(streams)]):
            results.append(step(model, mx.array(batch.ids_BT), mx.array(batch.weights_BT)))
    mx.eval(results)  # the streams run in parallel
    summed = tree_map(lambda *parts: sum(parts[1:], parts[0]), *(gradient for _, gradient in results))
    sums = [sum(float(values[at]) for values, _ in results) for at in (0, 1)]
    mean = tree_map(lambda gradient: gradient / total, summed)
    clipped, _ = optim.clip_grad_norm(mean, recipe.clip)
    optimizer.update(model, clipped)
    mx.eval(model.parameters(), optimizer.state)
    return sums[0] / total, sums[1] / answers


def _steps(tokenizer: Tokenizer, recipe: Recipe) -> Iterator[list[Batch]]:
    """Yield the micro-batches of every step: a pure function of seed and step."""
    for step in range(recipe.steps):
        generator = rng("tiny-pretraining", recipe.seed, step)
        rows = [_encode(tokenizer, draw_episode(generator), recipe) for _ in range(recipe.episodes_per_step)]
        rows.sort(key=lambda row: len(row[0]))
        yield [_pad(rows[part[0] : part[-1] + 1]) for part in _cut([len(row[0]) for row in rows], recipe.micro_batches)]


def _cut(lengths: list[int], parts: int) -> list[list[int]]:
    """Split consecutive rows into parts with about equally many tokens."""
    ends = np.cumsum(lengths)
    of = np.minimum((ends - 1) * parts // ends[-1], parts - 1)
    return [list(np.flatnonzero(of == part)) for part in range(parts) if (of == part).any()]


def _encode(tokenizer: Tokenizer, episode: Episode, recipe: Recipe) -> tuple[list[int], list[float]]:
    """Return the tokens of a chat and the weight of each token's loss."""
    prompt = tokenizer.encode(chat_text(episode.prompt)).ids
    answer = tokenizer.encode(episode.answer)
    weights = [
        0.0 if any(start < stop_at and stop > start_at for start_at, stop_at in episode.masked) else 1.0
        for start, stop in answer.offsets
    ]
    return (
        [*prompt, *answer.ids, tokenizer.token_to_id(END)],
        [*([recipe.prompt_weight] * len(prompt)), *weights, 1.0],
    )


def _pad(rows: list[tuple[list[int], list[float]]]) -> Batch:
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = np.zeros((len(rows), longest), dtype=np.int32)  # 0 is the padding token
    weights_BT = np.zeros((len(rows), longest), dtype=np.float32)
    for row, (ids, weights) in enumerate(rows):
        ids_BT[row, : len(ids)] = ids
        weights_BT[row, : len(ids)] = weights
    return Batch(ids_BT, weights_BT)
