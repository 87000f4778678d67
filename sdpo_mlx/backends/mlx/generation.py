"""Sampling with mlx-lm's BatchGenerator: one prefill per group, a seed per rollout, stop tokens kept.

The generator calls one shared sampler without the ids of the rows. `RowSampler` tracks the order itself (rows decode
in order, finished ones leave, queued ones enter in the order of insertion) and checks it against the ids that come
back; so each row is sampled with the keys of its own seed in one batched call.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.mlx.limits import no_wiring
from sdpo_mlx.backends.mlx.losses import at, row_sum
from sdpo_mlx.backends.mlx.mlx_lm_api import BatchGenerator, apply_top_p, make_prompt_cache, mlx_lm_generate
from sdpo_mlx.backends.mlx.model import Model
from sdpo_mlx.types import FinishReason, Generation, IntArray

WORDS_IN_BLOCK = 512
# The likeliest of V ids has at least 1 / V, so that only below this temperature all exponentials of a row could vanish.
COLD = 0.5


class RowSampler:
    """A shared sampler that tracks which rollout each row belongs to."""

    def __init__(self, sampling: SamplingParams) -> None:
        self.sampling = sampling
        self.queued: deque[int] = deque()
        self.rows: list[int] = []
        self._decoded = False
        self._keys: dict[int, Any] = {}
        self._places: dict[int, list[tuple[int, int]]] = {}
        self._chosen: list[Any] = []

    def admit(self, uid: int, seed: int) -> None:
        """Add a row that will start later, in this order, and is sampled with the keys of `seed`."""
        self.queued.append(uid)
        self._places[uid] = []
        self._keys[uid] = np.array(mx.random.split(mx.random.key(seed), self.sampling.max_tokens + 2))

    def __call__(self, logprobs_BV: mx.array) -> mx.array:
        """Return tokens (B,) for the rows that the generator holds now, and keep their log-probs."""
        uids = self._next_rows(logprobs_BV.shape[0])
        # Normalised anew: the CPU's long sums cost mlx-lm's log-probs their fourth digit.
        logs_BV, temperature = logprobs_BV.astype(mx.float32), self.sampling.temperature or 1.0
        if temperature < COLD:
            logs_BV = logs_BV - mx.max(logs_BV, axis=-1, keepdims=True)
        if temperature != 1.0:
            logs_BV = logs_BV / temperature
        weights_BV = mx.exp(logs_BV)
        if self.sampling.temperature == 0.0:
            tokens = mx.argmax(logs_BV, axis=-1)
        else:
            probs_BV = weights_BV
            if self.sampling.top_p < 1.0:
                logps_BV = logs_BV - mx.log(row_sum(weights_BV))[:, None]
                probs_BV = mx.where(mx.isinf(apply_top_p(logps_BV, self.sampling.top_p)), 0.0, weights_BV)
            keys_B2 = np.stack([self._keys[uid][len(self._places[uid])] for uid in uids])
            tokens = draw(probs_BV, mx.array(keys_B2))
        chosen = at(logs_BV, tokens) - mx.log(row_sum(weights_BV))
        mx.async_eval(chosen)  # otherwise it would keep the log-probs of the whole vocabulary alive
        self._chosen.append(chosen)
        for row, uid in enumerate(uids):
            self._places[uid].append((len(self._chosen) - 1, row))
        return tokens

    def _next_rows(self, count: int) -> list[int]:
        if self.rows and not self._decoded:
            self._decoded = True
            uids = list(self.rows)
        else:
            uids = [self.queued.popleft() for _ in range(min(count, len(self.queued)))]
            self._decoded = bool(self.rows)
            self.rows.extend(uids)
        if len(uids) != count:
            raise RuntimeError("the generator's rows are not the ones that were admitted")
        return uids

    def returned(self, uids: Sequence[int], finished: Collection[int]) -> None:
        """Check the order against what came back, and remove finished rows."""
        if self.rows[: len(uids)] != uids:
            raise RuntimeError("the generator's rows came back in another order")
        self.rows = [uid for uid in self.rows if uid not in finished]
        self.next_token()

    def next_token(self) -> None:
        """Prepare to sample the next token of the rows that are left."""
        self._decoded = False

    def logps(self, uid: int, length: int) -> Any:
        """Return the sampling log-probs of a finished row (T,), as numpy float32."""
        del self._keys[uid]
        places = self._places.pop(uid)[:length]
        for turn, _ in places:
            self._chosen[turn] = np.asarray(self._chosen[turn])
        return np.array([self._chosen[turn][row] for turn, row in places], dtype=np.float32)


def generate(
    model: Model,
    prompts: Sequence[IntArray],
    sampling: SamplingParams,
    seeds: Sequence[Sequence[int]],
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, int, Generation]]:
    """See `Policy.generate`; a model whose rows cannot be batched decodes one rollout after the other."""
    if not model.batched:
        yield from _one_by_one(model, prompts, sampling, seeds, interrupted)
        return
    longest = max(map(len, prompts), default=0) + sampling.max_tokens
    rows = model.sizes.rows_at(longest)
    sampling = replace(sampling, concurrency=min(sampling.concurrency, rows))
    waiting = deque((at, ids, seeds[at]) for at, ids in enumerate(prompts) if seeds[at])
    owners: dict[int, tuple[int, int]] = {}
    tokens: dict[int, list[int]] = {}
    with _generator(model, sampling, min(rows, max(map(len, seeds), default=1))) as (generator, sampler):
        while waiting or tokens:
            while waiting and (not tokens or len(tokens) + len(waiting[0][2]) <= sampling.concurrency):
                at, ids, own = waiting.popleft()
                for n, uid in enumerate(_insert_group(generator, model, ids, len(own))):
                    owners[uid], tokens[uid] = (at, n), []
                    sampler.admit(uid, own[n])
            finishes = _next_tokens(generator, sampler, tokens)
            if interrupted():
                raise KeyboardInterrupt
            for uid, finish in finishes.items():
                if interrupted():
                    raise KeyboardInterrupt
                ids_T = np.array(tokens.pop(uid), dtype=np.int32)
                yield *owners.pop(uid), Generation(ids_T, sampler.logps(uid, ids_T.size), finish)


def stream(model: Model, prompt: IntArray, sampling: SamplingParams, seed: int) -> Iterator[int]:
    """See `Policy.stream`."""
    if not model.batched:
        yield from _decode(model, _prefilled(model, prompt), int(prompt[-1]), sampling, _admitted(sampling, seed))
        return
    with _generator(model, sampling, 1) as (generator, sampler):
        uid = _insert_group(generator, model, prompt, 1)[0]
        sampler.admit(uid, seed)
        tokens, finishes = {uid: list[int]()}, dict[int, FinishReason]()
        while not finishes:
            finishes = _next_tokens(generator, sampler, tokens)
            yield tokens[uid][-1]


@contextmanager
def _generator(model: Model, sampling: SamplingParams, group: int) -> Iterator[tuple[BatchGenerator, RowSampler]]:
    sampler = RowSampler(sampling)
    with no_wiring(mlx_lm_generate):
        generator = BatchGenerator(
            model.whole,
            max_tokens=sampling.max_tokens,
            stop_tokens=[[token] for token in sorted(sampling.eos_ids)],
            sampler=sampler,
            completion_batch_size=sampling.concurrency,
            prefill_batch_size=group,
            prefill_step_size=model.piece(),
        )
    try:
        yield generator, sampler
    finally:
        generator.close()


def _next_tokens(
    generator: BatchGenerator, sampler: RowSampler, tokens: Mapping[int, list[int]]
) -> dict[int, FinishReason]:
    """Decode until rows have a next token and append it to their `tokens`; return the rows that finish, and why."""
    responses = generator.next_generated()
    finishes: dict[int, FinishReason] = {r.uid: r.finish_reason for r in responses if r.finish_reason is not None}
    for response in responses:
        ids = tokens[response.uid]
        ids.append(int(response.token))
        if sampler.sampling.at_stop_text(ids):
            finishes[response.uid] = "stop"
    sampler.returned([response.uid for response in responses], finishes)
    # The generator removes by itself the rows that end at a token of its own or at the limit.
    if ended := [r.uid for r in responses if r.finish_reason is None and r.uid in finishes]:
        with mx.stream(generator.stream):
            generator.remove(ended)
    return finishes


def _insert_group(generator: BatchGenerator, model: Model, ids: IntArray, n: int) -> list[int]:
    """Run the prompt except for its last token once, and start n rows from that cache."""
    tokens = [int(token) for token in ids]
    cache = _prefilled(model, ids)
    caches = [cache] * n if len(tokens) > 1 else None
    return list(generator.insert([[tokens[-1]]] * n, caches=caches, all_tokens=[tokens[:-1]] * n))


def _prefilled(model: Model, ids: IntArray) -> list[Any]:
    """Return the cache of a prompt except for its last token."""
    cache: list[Any] = make_prompt_cache(model.whole)
    start, last = 0, ids.size - 1
    while start < last:
        end = min(start + model.piece(start), last)
        model.whole(mx.array(ids[None, start:end]), cache=cache)
        mx.eval([layer.state for layer in cache])
        start = end
    return cache


def _one_by_one(
    model: Model,
    prompts: Sequence[IntArray],
    sampling: SamplingParams,
    seeds: Sequence[Sequence[int]],
    interrupted: Callable[[], bool],
) -> Iterator[tuple[int, int, Generation]]:
    """The rollouts in order, each from a copy of its prompt's cache."""
    for at_prompt, ids in enumerate(prompts):
        cache = _prefilled(model, ids) if seeds[at_prompt] else []
        for n, seed in enumerate(seeds[at_prompt]):
            sampler, tokens = _admitted(sampling, seed), list[int]()
            for token in _decode(model, copy.deepcopy(cache), int(ids[-1]), sampling, sampler):
                if interrupted():
                    raise KeyboardInterrupt
                tokens.append(token)
            finish: FinishReason = "stop" if sampling.stops(tokens) else "length"
            yield at_prompt, n, Generation(np.array(tokens, np.int32), sampler.logps(0, len(tokens)), finish)


def _admitted(sampling: SamplingParams, seed: int) -> RowSampler:
    sampler = RowSampler(sampling)
    sampler.admit(0, seed)
    return sampler


def _decode(model: Model, cache: list[Any], token: int, sampling: SamplingParams, sampler: RowSampler) -> Iterator[int]:
    """Yield the tokens of one rollout, including the one that ends it."""
    ids: list[int] = []
    while len(ids) < sampling.max_tokens:
        logits_1V = model.whole(mx.array([[token]]), cache=cache)[:, -1]
        token = int(np.array(sampler(logits_1V - mx.logsumexp(logits_1V, axis=-1, keepdims=True)))[0])
        sampler.next_token()
        ids.append(token)
        yield token
        if sampling.stops(ids):
            return


def draw(probs_BV: mx.array, keys_B2: mx.array) -> mx.array:
    """Draw one id (B,) int32 per row in proportion to `probs_BV` (float32, any scale), never one of probability 0.

    By inverting the cumulative sum, first of blocks of ids, then inside the block drawn: sums stay short, and each
    level has its own uniform number. Gumbel noise for every id costs seven times as much on a CPU.
    """
    rows, words = probs_BV.shape
    blocks = -(-words // WORDS_IN_BLOCK)
    short = blocks * WORDS_IN_BLOCK - words
    split_BNS = mx.pad(probs_BV, [(0, 0), (0, short)]).reshape(rows, blocks, WORDS_IN_BLOCK)
    uniform_B2 = mx.vmap(lambda key: mx.random.uniform(shape=(2,), key=key))(keys_B2)
    block_B = _first_above(mx.sum(split_BNS, axis=-1), uniform_B2[:, 0])
    inside_BS = mx.take_along_axis(split_BNS, block_B[:, None, None], axis=1)[:, 0]
    return block_B * WORDS_IN_BLOCK + _first_above(inside_BS, uniform_B2[:, 1])


def _first_above(weights_BK: mx.array, uniform_B: mx.array) -> mx.array:
    """The first index whose cumulative sum exceeds the share `uniform_B` of the total."""
    sums_BK = mx.cumsum(weights_BK, axis=-1)
    return mx.sum(sums_BK <= uniform_B[:, None] * sums_BK[:, -1:], axis=-1).astype(mx.int32)
