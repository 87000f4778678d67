"""Sampling with transformers: one prefill per group, a seed per rollout, rows removed as soon as they finish.

Prompts are prefilled one by one, since few are of equal length, and a padded prefill would need its own check of every
recurrence. A model whose cache cannot hold several prompts generates one rollout after the other.

Each token is drawn with one uniform number per position, and these follow from the row's own seed alone; so a rollout
does not depend on its neighbours, on the device, or on when it was started, up to rounding. In float32 on a CPU tokens
are the same in the tests; in 16 bits, and on a GPU, kernels change with the batch, and a token near a boundary of the
draw may be another one. Its log-prob is that of the pass that drew it, and the importance weight carries the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicCache

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.torch import kv_cache
from sdpo_mlx.backends.torch.kv_cache import continued, emptied, joined, keys_in, prefill, selected, shared
from sdpo_mlx.backends.torch.losses import log_softmax
from sdpo_mlx.backends.torch.model import Model, states_of
from sdpo_mlx.types import FinishReason, Generation, IntArray

DRAW_BYTES = 48  # of each id of the vocabulary: float32 logits and log-probs, some float64 copies
NUCLEUS = 1_024  # ids among which the nucleus of `top_p` is looked for before the whole vocabulary is sorted


@dataclass
class Row:
    """One unfinished rollout: its prompt and index, its seed, and its tokens so far."""

    owner: tuple[int, int]
    seed: int
    prompt: int  # tokens of the prompt
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens before the next one."""
        return self.prompt + len(self.tokens)


class Batch:
    """Unfinished rollouts side by side. The cache is as wide as the longest needs, at every token.

    What decides the next token stays on the device: lengths, uniform numbers, and how many of those are used.
    """

    def __init__(self, model: Model, sampling: SamplingParams) -> None:
        self.model, self.sampling = model, sampling
        self.rows: list[Row] = []
        self.cache: DynamicCache | None = None
        self.last_B = self.lengths_B = torch.zeros(0, dtype=torch.long, device=model.device)
        self.uniforms = Uniforms(model.device, sampling.max_tokens)

    @property
    def width(self) -> int:
        """Keys that the longest row needs: all of its tokens but the last."""
        return max(row.length for row in self.rows) - 1

    def add(self, ids: IntArray, rows: Sequence[Row]) -> None:
        """Begin rollouts of one prompt."""
        begun, first_N = _start(self.model, ids, len(rows))
        self.cache = begun if self.cache is None else joined(self.cache, begun)
        self.last_B = torch.cat([self.last_B, first_N])
        self.lengths_B = torch.cat([self.lengths_B, torch.full_like(first_N, ids.size)])
        self.uniforms.add([row.seed for row in rows])
        self.rows += rows

    @torch.no_grad()
    def decode(self) -> None:
        """Draw one more token per row; the cache grows by the one before."""
        assert self.cache is not None
        width, given = keys_in(self.cache) + 1, {"position_ids": (self.lengths_B - 1)[:, None]}
        if any(row.length < width for row in self.rows):  # without a mask transformers need not look for padding
            mask = torch.arange(width, device=self.model.device) >= (width - self.lengths_B)[:, None]
            given["attention_mask"] = mask.long()
        hidden = states_of(continued(self.model.body, self.last_B[:, None], self.cache, **given))
        self.last_B, logps_B = drawn(self.model.logits(hidden[:, -1]), self.uniforms.next_B1(), self.sampling)
        self.lengths_B = self.lengths_B + 1
        noted(self.rows, self.last_B, logps_B)

    def keep(self, running: Sequence[int]) -> None:
        """Drop all rows but these, and the keys that none of them needs."""
        chosen = torch.tensor(running, device=self.model.device, dtype=torch.long)
        self.rows = [self.rows[n] for n in running]
        self.cache = selected(self.cache, chosen, self.width) if self.cache is not None and running else None
        self.last_B, self.lengths_B = self.last_B[chosen], self.lengths_B[chosen]
        self.uniforms.keep(running)


class Uniforms:
    """The uniform numbers of each row, float64, uploaded once, and how many of them are used."""

    def __init__(self, device: torch.device, length: int) -> None:
        # Apple's GPU has no float64; sums of a long vocabulary need it.
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.values_BT = torch.zeros((0, length), dtype=torch.float64, device=self.device)
        self.used_B1 = torch.zeros((0, 1), dtype=torch.long, device=self.device)

    def add(self, seeds: Sequence[int]) -> None:
        """Add a row for each seed, from which its numbers follow."""
        length = self.values_BT.shape[1]
        new = np.stack([np.random.default_rng(seed).random(length) for seed in seeds])
        self.values_BT = torch.cat([self.values_BT, torch.from_numpy(new).to(self.device)])
        self.used_B1 = torch.cat([self.used_B1, self.used_B1.new_zeros((len(seeds), 1))])

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        chosen = torch.tensor(rows, device=self.device, dtype=torch.long)
        self.values_BT, self.used_B1 = self.values_BT[chosen], self.used_B1[chosen]

    def next_B1(self) -> Tensor:
        """The next number of each row."""
        found = self.values_BT.gather(1, self.used_B1)
        self.used_B1 = self.used_B1 + 1
        return found


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
    batch = Batch(model, sampling)
    while waiting or batch.rows:
        while waiting and (not batch.rows or len(batch.rows) + len(waiting[0][2]) <= sampling.concurrency):
            at, ids, own = waiting.popleft()
            batch.add(ids, [Row((at, n), seed, ids.size) for n, seed in enumerate(own)])
        if interrupted():
            raise KeyboardInterrupt
        batch.decode()
        rows, ends = batch.rows, [_end(row, sampling) for row in batch.rows]
        running = [n for n, end in enumerate(ends) if end is None]
        if len(running) < len(rows):
            batch.keep(running)
        for row, end in zip(rows, ends, strict=True):
            if end is not None:
                yield *row.owner, _finished(row, sampling)


def stream(model: Model, prompt: IntArray, sampling: SamplingParams, seed: int) -> Iterator[int]:
    """See `Policy.stream`; a model that generates one by one yields all tokens at the end."""
    if not model.batched:
        yield from _alone(model, prompt, sampling, seed).tokens
        return
    batch, row = Batch(model, sampling), Row((0, 0), seed, prompt.size)
    batch.add(prompt, [row])
    while not row.tokens or _end(row, sampling) is None:
        batch.decode()
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
    row, uniforms = Row((0, 0), seed, ids.size), Uniforms(model.device, sampling.max_tokens)
    uniforms.add([seed])

    def draw(_: Tensor, logits_1V: Tensor) -> Tensor:
        if interrupted():
            raise KeyboardInterrupt
        token, logp = drawn(logits_1V, uniforms.next_B1(), sampling)
        noted([row], token, logp)
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
def row_bytes(model: Model) -> tuple[int, int]:
    """Bytes of one row as it is sampled: of each of its tokens, and besides (states, and one draw's copies)."""
    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    a_token, states = kv_cache.row_bytes(prefill(model.body, ids))
    return a_token, 2 * states + DRAW_BYTES * model.vocab_size


@torch.no_grad()
def _start(model: Model, ids: IntArray, n: int) -> tuple[DynamicCache, Tensor]:
    """Run the prompt except for its last token once; return a cache for n rows, and that token."""
    prompt = torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(model.device)
    cache = prefill(model.body, prompt[None, : max(1, prompt.numel() - 1)], pieces=model.shares)
    return shared(cache if prompt.numel() > 1 else emptied(cache), n), prompt[-1:].expand(n)


def drawn(logits_BV: Tensor, uniforms_B1: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """Return each row's next token (B,) and its log-prob, from the row's next uniform number (float64)."""
    logp_BV = log_softmax(logits_BV, sampling.temperature or 1.0)
    tokens_B = _sample(logp_BV, uniforms_B1, sampling)
    return tokens_B, logp_BV.gather(-1, tokens_B[:, None])[:, 0]


def noted(rows: Sequence[Row], tokens_B: Tensor, logps_B: Tensor) -> None:
    """Append each row's token and log-prob, fetched from the device at once; ids below 2**24 are exact in float32."""
    tokens, logps = torch.stack([tokens_B.to(logps_B.dtype), logps_B]).tolist()
    for row, token, logp in zip(rows, tokens, logps, strict=True):
        row.tokens.append(int(token))
        row.logps.append(logp)


def _sample(logp_BV: Tensor, uniforms_B1: Tensor, sampling: SamplingParams) -> Tensor:
    """Tokens (B,): the likeliest, or the first whose cumulative probability exceeds the row's uniform number."""
    if sampling.temperature == 0.0:
        return logp_BV.argmax(-1)
    p_BV = logp_BV.to(uniforms_B1.device).double().exp()
    if sampling.top_p < 1.0:
        p_BV = nucleus(p_BV, sampling.top_p)
    sums_BV = p_BV.cumsum(-1)
    total_B1 = sums_BV[:, -1:]
    # The first id whose sum exceeds the number has a probability above 0. A product that is rounded up to the total
    # would lead past the last such id.
    below_B1 = torch.minimum(uniforms_B1 * total_B1, total_B1.nextafter(torch.zeros_like(total_B1)))
    return torch.searchsorted(sums_BV, below_B1, right=True)[:, 0].to(logp_BV.device)


def nucleus(p_BV: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest ids whose probabilities reach `top_p` together, of equal ones the first; the others get 0."""
    ordered_BK = p_BV.topk(min(NUCLEUS, p_BV.shape[-1]), dim=-1).values
    kept_BK = ordered_BK.cumsum(-1) - ordered_BK < top_p
    if ordered_BK.shape[-1] < p_BV.shape[-1] and bool(kept_BK[:, -1].any()):
        ordered_BK = p_BV.sort(-1, descending=True).values
        kept_BK = ordered_BK.cumsum(-1) - ordered_BK < top_p
    kept_B1 = kept_BK.sum(-1, keepdim=True)
    least_B1 = ordered_BK.gather(-1, kept_B1 - 1)
    equal_BV = p_BV == least_B1
    of_equal_B1 = kept_B1 - (ordered_BK > least_B1).sum(-1, keepdim=True)
    return torch.where((p_BV > least_B1) | (equal_BV & (equal_BV.cumsum(-1) <= of_equal_B1)), p_BV, 0.0)


def _end(row: Row, sampling: SamplingParams) -> FinishReason | None:
    if sampling.stops(row.tokens):
        return "stop"
    return "length" if len(row.tokens) >= sampling.max_tokens else None


def _finished(row: Row, sampling: SamplingParams) -> Generation:
    end = _end(row, sampling)
    assert end is not None
    return Generation(np.array(row.tokens, dtype=np.int32), np.array(row.logps, dtype=np.float32), end)
