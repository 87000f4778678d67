"""Sampling with transformers: one prefill per group, a seed per rollout, rows removed as soon as they finish.

A model whose cache cannot hold several prompts generates one rollout after the other.

Each token is drawn with one uniform number per position, and these follow from the row's own seed alone; so a rollout
does not depend on its neighbours, on the device, or on when it was started.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicCache

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.torch.kv_cache import continued, emptied, joined, keys_in, prefill, selected, shared
from sdpo_mlx.backends.torch.losses import log_softmax
from sdpo_mlx.backends.torch.model import Model, states_of
from sdpo_mlx.types import FinishReason, Generation, IntArray


@dataclass
class Row:
    """One unfinished rollout: its prompt and index, its uniform numbers, and its tokens so far."""

    owner: tuple[int, int]
    uniforms_T: Any
    length: int  # tokens before the next one
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


def generate(
    model: Model,
    prompts: Sequence[IntArray],
    sampling: SamplingParams,
    seeds: Sequence[Sequence[int]],
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, int, Generation]]:
    """See `Policy.generate`."""
    if not model.batched:
        yield from _one_by_one(model, prompts, sampling, seeds, interrupted)
        return
    waiting = deque((at, ids, seeds[at]) for at, ids in enumerate(prompts) if seeds[at])
    rows, cache, last = list[Row](), DynamicCache(), torch.zeros(0, dtype=torch.long, device=model.device)
    while waiting or rows:
        while waiting and (not rows or len(rows) + len(waiting[0][2]) <= sampling.concurrency):
            at, ids, own = waiting.popleft()
            begun, first = _start(model, ids, len(own))
            cache, last = (joined(cache, begun), torch.cat([last, first])) if rows else (begun, first)
            rows += [Row((at, n), _uniforms(seed, sampling), ids.size) for n, seed in enumerate(own)]
        if interrupted():
            raise KeyboardInterrupt
        last = _decode(model, rows, cache, last, sampling)
        ends = [_end(row, sampling) for row in rows]
        for row, end in zip(rows, ends, strict=True):
            if end is not None:
                yield *row.owner, _finished(row, sampling)
        running = [n for n, end in enumerate(ends) if end is None]
        if len(running) < len(rows):
            chosen = torch.tensor(running, device=model.device, dtype=torch.long)
            rows, last = [rows[n] for n in running], last[chosen]
            cache = selected(cache, chosen)


def stream(model: Model, prompt: IntArray, sampling: SamplingParams, seed: int) -> Iterator[int]:
    """See `Policy.stream`; a model that generates one by one yields all tokens at the end."""
    if not model.batched:
        yield from _alone(model, prompt, sampling, seed).tokens
        return
    cache, last = _start(model, prompt, 1)
    row = Row((0, 0), _uniforms(seed, sampling), prompt.size)
    while not row.tokens or _end(row, sampling) is None:
        last = _decode(model, [row], cache, last, sampling)
        yield row.tokens[-1]


def _one_by_one(
    model: Model,
    prompts: Sequence[IntArray],
    sampling: SamplingParams,
    seeds: Sequence[Sequence[int]],
    interrupted: Callable[[], bool],
) -> Iterator[tuple[int, int, Generation]]:
    for at, (ids, own) in enumerate(zip(prompts, seeds, strict=True)):
        for n, seed in enumerate(own):
            row = _alone(model, ids, sampling, seed, interrupted)
            yield at, n, _finished(row, sampling)


@torch.no_grad()
def _alone(
    model: Model, ids: IntArray, sampling: SamplingParams, seed: int, interrupted: Callable[[], bool] = lambda: False
) -> Row:
    """One rollout by transformers' own loop, which knows how to feed each model's cache; our draw picks the token."""
    row = Row((0, 0), _uniforms(seed, sampling), ids.size)

    def draw(_: Tensor, logits_1V: Tensor) -> Tensor:
        if interrupted():
            raise KeyboardInterrupt
        token = _drawn(logits_1V, [row], sampling)
        return torch.full_like(logits_1V, -torch.inf).scatter(-1, token[:, None], 0.0)

    def stops(given_1T: Tensor, _: object, **__: object) -> Tensor:
        return torch.full((1,), sampling.at_stop_text(row.tokens), device=given_1T.device)

    prompt = torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(model.device)[None]
    model.whole.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        logits_processor=LogitsProcessorList([draw]),
        stopping_criteria=StoppingCriteriaList([stops]),
        do_sample=False,
        max_new_tokens=sampling.max_tokens,
        eos_token_id=sorted(sampling.eos_ids) or None,
        pad_token_id=0,
    )
    return row


@torch.no_grad()
def _start(model: Model, ids: IntArray, n: int) -> tuple[DynamicCache, Tensor]:
    """Run the prompt except for its last token once; return a cache for n rows, and that token."""
    prompt = torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(model.device)
    cache = prefill(model.body, prompt[None, : max(1, prompt.numel() - 1)], pieces=model.shares)
    return shared(cache if prompt.numel() > 1 else emptied(cache), n), prompt[-1:].expand(n)


@torch.no_grad()
def _decode(model: Model, rows: list[Row], cache: DynamicCache, last: Tensor, sampling: SamplingParams) -> Tensor:
    """Draw one more token per row; the cache grows by the one before."""
    width = keys_in(cache) + 1
    lengths = torch.tensor([row.length for row in rows], device=model.device)
    mask = torch.arange(width, device=model.device) >= (width - lengths)[:, None]
    given = {"attention_mask": mask.long(), "position_ids": (lengths - 1)[:, None]}
    hidden = states_of(continued(model.body, last[:, None], cache, **given))
    return _drawn(model.logits(hidden[:, -1]), rows, sampling)


def _drawn(logits_BV: Tensor, rows: Sequence[Row], sampling: SamplingParams) -> Tensor:
    """Draw each row's next token, and note it with its log-prob."""
    logp_BV = log_softmax(logits_BV, sampling.temperature or 1.0)
    tokens = _sample(logp_BV, rows, sampling)
    chosen = logp_BV.gather(-1, tokens[:, None])[:, 0].tolist()
    for row, token, logp in zip(rows, tokens.tolist(), chosen, strict=True):
        row.tokens.append(token)
        row.logps.append(logp)
        row.length += 1
    return tokens


def _sample(logp_BV: Tensor, rows: Sequence[Row], sampling: SamplingParams) -> Tensor:
    """Tokens (B,): the likeliest, or the first whose cumulative probability exceeds the row's uniform number."""
    if sampling.temperature == 0.0:
        return logp_BV.argmax(-1)
    # Apple's GPU has no float64; sums of a long vocabulary need it.
    p_BV = logp_BV.cpu().double().exp() if logp_BV.device.type == "mps" else logp_BV.double().exp()
    if sampling.top_p < 1.0:
        # The likeliest ids whose probabilities reach `top_p` together; the others get 0.
        ordered, ids = p_BV.sort(-1, descending=True)
        kept = torch.where(ordered.cumsum(-1) - ordered < sampling.top_p, ordered, 0.0)
        p_BV = torch.zeros_like(p_BV).scatter(-1, ids, kept)
    total_BV = p_BV.cumsum(-1)
    u_B1 = torch.tensor([[row.uniforms_T[len(row.tokens)]] for row in rows], dtype=p_BV.dtype, device=p_BV.device)
    # The first id whose sum exceeds the number has a probability above 0.
    found = torch.searchsorted(total_BV, u_B1 * total_BV[:, -1:], right=True)[:, 0]
    # Rounding must not lead past the last id of a probability above 0.
    last = p_BV.shape[-1] - 1 - (p_BV.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(found, last).to(logp_BV.device)


def _end(row: Row, sampling: SamplingParams) -> FinishReason | None:
    if sampling.stops(row.tokens):
        return "stop"
    return "length" if len(row.tokens) >= sampling.max_tokens else None


def _finished(row: Row, sampling: SamplingParams) -> Generation:
    end = _end(row, sampling)
    assert end is not None
    return Generation(np.array(row.tokens, dtype=np.int32), np.array(row.logps, dtype=np.float32), end)


def _uniforms(seed: int, sampling: SamplingParams) -> Any:
    return np.random.default_rng(seed).random(sampling.max_tokens)
