"""The thread that computes the tokens of all requests, so that a long one runs beside short ones.

Each model has a lane. A lane decodes its rows together with mlx-lm's `BatchGenerator`, which also cuts prompts into
pieces between two tokens; models whose rows cannot be decoded together take turns, a token each. A failure ends the
requests of its lane with an error, and the lane begins anew.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sdpo_mlx.backends.mlx.mlx_lm_api import (
    BatchGenerator,
    LRUPromptCache,
    apply_min_p,
    apply_top_k,
    apply_top_p,
    make_logits_processors,
    make_prompt_cache,
)
from sdpo_mlx.backends.serving.jobs import Grammar, Job, Token, failed
from sdpo_mlx.backends.serving.requests import Request

ROWS = 32  # decoded together
PIECE, FIRST_PIECE = 512, 32  # tokens of each prompt between two tokens of the other rows: most, and at the start
PIECE_SECONDS = 0.5  # smaller pieces follow one that took longer
PROMPTS_KEPT = 10  # caches of earlier conversations
COLDEST = 1e-4  # below it a division would overflow
LOWEST = -9999.0  # OpenAI's log-probability for what has none

Sampler = Callable[[mx.array], mx.array]


def _greedy(logps_BV: mx.array) -> mx.array:
    return mx.argmax(logps_BV, axis=-1)


class KeyedSampler:
    """Samples (B, V) -> (B,) with random numbers of its own."""

    def __init__(self, request: Request, seed: int) -> None:
        self._asked, self._key = request, mx.random.key(seed % 2**64)

    def __call__(self, logps_BV: mx.array) -> mx.array:
        """Return the next token."""
        asked = self._asked
        self._key, now = mx.random.split(self._key)
        if asked.top_p < 1.0:
            logps_BV = apply_top_p(logps_BV, asked.top_p)
        if asked.min_p > 0.0:
            logps_BV = apply_min_p(logps_BV, asked.min_p)
        if 0 < asked.top_k < logps_BV.shape[-1]:
            logps_BV = apply_top_k(logps_BV, asked.top_k)
        highest = mx.max(logps_BV, axis=-1, keepdims=True)
        return mx.random.categorical((logps_BV - highest) / max(asked.temperature, COLDEST), key=now)


def sampler_of(request: Request, seed: int) -> Sampler:
    """Return the sampler of a row; the greedy one is shared, and runs once for all rows that have it."""
    return KeyedSampler(request, seed) if request.temperature > 0.0 else _greedy


def processors_of(job: Job) -> list[Callable[[Any, mx.array], mx.array]]:
    """Return what changes the logits of one row before it is sampled."""
    asked = job.request
    repeated = asked.repetition_penalty if asked.repetition_penalty not in (0.0, 1.0) else None
    processors = make_logits_processors(
        asked.bias or None,
        repetition_penalty=repeated,
        presence_penalty=asked.presence_penalty or None,
        frequency_penalty=asked.frequency_penalty or None,
    )
    return [*processors, *([_constrained(job.grammar(), len(job.prompt))] if job.grammar is not None else [])]


def _constrained(allowed: Grammar, start: int) -> Callable[[Any, mx.array], mx.array]:
    def processor(tokens: Any, logits_1V: mx.array) -> mx.array:
        ids_T = np.asarray(mx.array(tokens)[start:])
        return mx.where(mx.array(allowed([int(token) for token in ids_T]))[None], logits_1V, -mx.inf)

    return processor


class Lane:
    """The rows of one model."""

    def __init__(self, model: nn.Module, eos_ids: frozenset[int], stream: Any, *, batched: bool) -> None:
        self.model, self.eos_ids, self._stream, self._batched = model, eos_ids, stream, batched
        self.rows: dict[int, tuple[Job, int]] = {}
        self._kept = LRUPromptCache(PROMPTS_KEPT)
        self.reset()

    def reset(self) -> None:
        """Begin anew without rows."""
        self.rows = {}
        self._count, self._alone = 0, dict[int, Iterator[Token]]()
        stops = [[token] for token in sorted(self.eos_ids)]
        if self._batched:
            self._generator = BatchGenerator(
                self.model,
                stop_tokens=stops,
                completion_batch_size=ROWS,
                prefill_step_size=FIRST_PIECE,
                stream=self._stream,
            )

    def add(self, job: Job) -> None:
        """Add the rows of a job."""
        first = secrets.randbits(62) if job.request.seed is None else job.request.seed
        for choice in range(job.request.n):
            sampler, processors = sampler_of(job.request, first + choice), processors_of(job)
            if not self._batched:
                uid = self._count = self._count + 1
                self._alone[uid] = self._decoded(job, choice, sampler, processors)
            else:
                # The last token is computed in any case: its logits begin the reply.
                cache, rest = self._kept.fetch_nearest_cache(0, job.prompt[:-1])
                cached = job.prompt[: len(job.prompt) - 1 - len(rest)]
                (uid,) = self._generator.insert(
                    [[*rest, job.prompt[-1]]],
                    max_tokens=[job.max_tokens],
                    caches=[cache],
                    all_tokens=[cached],
                    samplers=[sampler],
                    logits_processors=[processors],
                )
            self.rows[uid] = (job, choice)

    def step(self) -> None:
        """Compute the next token of each row, or the next piece of its prompt."""
        if left := [uid for uid, (job, choice) in self.rows.items() if choice in job.ended]:
            self._remove(left)
        if not self._batched:
            for uid, row in list(self._alone.items()):
                self._deliver(uid, next(row))
            return
        began, size = time.monotonic(), self._generator.prefill_step_size
        prompts, answers = self._generator.next()
        if prompts:  # a short request waits for one piece of a long prompt at most
            slow = time.monotonic() - began > PIECE_SECONDS
            self._generator.prefill_step_size = max(size // 2, 8) if slow else min(size * 2, PIECE)
        for answer in answers:
            if answer.uid not in self.rows:
                continue
            job, choice = self.rows[answer.uid]
            if answer.finish_reason is not None:
                self._kept.insert_cache(0, answer.all_tokens[:], answer.prompt_cache)
            token = read_token(choice, int(answer.token), answer.logprobs, job.request, answer.finish_reason)
            self._deliver(answer.uid, token)

    def fail(self, error: Exception) -> None:
        """End all rows with an error, and begin anew."""
        for job in {job for job, _ in self.rows.values()}:
            job.events.put(failed(error))
        self.reset()

    def drop(self, job: Job) -> None:
        """Remove the rows of a job."""
        self._remove([uid for uid, (owner, _) in self.rows.items() if owner is job])

    def _deliver(self, uid: int, token: Token) -> None:
        self.rows[uid][0].events.put(token)
        if token.finish is not None:
            del self.rows[uid]
            self._alone.pop(uid, None)

    def _remove(self, uids: list[int]) -> None:
        for uid in uids:
            del self.rows[uid]
            self._alone.pop(uid, None)
        if self._batched:
            with mx.stream(self._stream):
                self._generator.remove(uids)

    def _decoded(self, job: Job, choice: int, sampler: Sampler, processors: list[Any]) -> Iterator[Token]:
        """The tokens of one row by itself."""
        cache, ids = make_prompt_cache(self.model), list(job.prompt)
        with mx.stream(self._stream):
            for start in range(0, len(ids) - 1, PIECE):
                self.model(mx.array([ids[start : min(start + PIECE, len(ids) - 1)]]), cache=cache)
                mx.eval([layer.state for layer in cache])
        for count in range(1, job.max_tokens + 1):
            with mx.stream(self._stream):
                logits_1V = self.model(mx.array([ids[-1:]]), cache=cache)[:, -1]
                for processor in processors:
                    logits_1V = processor(mx.array(ids), logits_1V)
                logps_1V = logits_1V - mx.logsumexp(logits_1V, axis=-1, keepdims=True)
                ids.append(int(np.asarray(sampler(logps_1V))[0]))
                finish = "stop" if ids[-1] in self.eos_ids else "length" if count == job.max_tokens else None
                yield read_token(choice, ids[-1], logps_1V[0], job.request, finish)


def read_token(choice: int, token: int, logps_V: mx.array, request: Request, finish: str | None) -> Token:
    """Return a token with its log-probability and the asked alternatives, the likeliest first."""
    if request.alternatives is None:
        return Token(choice, token, 0.0, (), finish)
    found_V = np.maximum(np.nan_to_num(np.asarray(logps_V.astype(mx.float32)), nan=LOWEST), LOWEST)
    likeliest = np.argsort(-found_V, kind="stable")[: request.alternatives]
    return Token(choice, token, float(found_V[token]), tuple((int(i), float(found_V[i])) for i in likeliest), finish)


class MLXEngine:
    """Runs the lanes in a thread of its own; `load` is called there, and returns the models by name."""

    vocab_size = 0

    def __init__(self, load: Callable[[], Mapping[str, tuple[nn.Module, bool]]], eos_ids: frozenset[int]) -> None:
        self._load, self._eos_ids = load, eos_ids
        self._queue: SimpleQueue[Job] = SimpleQueue()
        self._ready, self._stopping = Event(), Event()
        self.fault: Exception | None = None
        self._thread = Thread(target=self._run, name="sdpo-serve", daemon=True)

    def start(self) -> None:
        """Load the models; raise what failed."""
        self._thread.start()
        while not self._ready.wait(0.2):  # in pieces, so that Ctrl-C arrives
            pass
        if self.fault is not None:
            raise self.fault

    def stop(self) -> None:
        """End the thread and release the models in it."""
        self._stopping.set()
        self._thread.join(timeout=30)

    def submit(self, job: Job) -> None:
        """See `Engine.submit`."""
        self._queue.put(job)

    def _run(self) -> None:
        try:
            models = self._load()
            stream = mx.default_stream(mx.default_device())
            lanes = {
                name: Lane(model, self._eos_ids, stream, batched=batched) for name, (model, batched) in models.items()
            }
            model = next(iter(models.values()))[0]
            self.vocab_size = model(mx.array([[0]])).shape[-1]
        except Exception as error:
            self.fault = error
            return
        finally:
            self._ready.set()
        while not self._stopping.is_set():
            self._admit(lanes, wait=not any(lane.rows for lane in lanes.values()))
            for lane in lanes.values():
                if lane.rows:
                    try:
                        lane.step()
                    except Exception as error:  # of a layer, a kernel, or memory
                        lane.fail(error)

    def _admit(self, lanes: Mapping[str, Lane], *, wait: bool) -> None:
        with suppress(Empty):
            while True:
                job = self._queue.get(timeout=0.1) if wait else self._queue.get_nowait()
                wait = False
                try:
                    lanes[job.model].add(job)
                except Exception as error:
                    lanes[job.model].drop(job)
                    job.events.put(failed(error))
