"""What goes between a request's thread and the model's: a job there, its tokens back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np

from sdpo_mlx.backends.serving.requests import ApiError, Request

POLL_SECONDS = 0.5  # how often a waiting request looks whether its client is still there

# Allowed ids (V,) bool after the ids that were sampled so far; called once a token, in order.
Grammar = Callable[[list[int]], "np.ndarray[Any, np.dtype[np.bool_]]"]


@dataclass(frozen=True)
class Token:
    """One sampled token of a choice; `finish` is set on its last one, `stop` for one that ends the reply."""

    choice: int
    id: int
    logp: float
    top: tuple[tuple[int, float], ...]
    finish: str | None


@dataclass(eq=False)
class Job:
    """A request as the model's thread needs it."""

    model: str
    prompt: list[int]
    max_tokens: int
    request: Request
    grammar: Callable[[], Grammar] | None = None
    events: SimpleQueue[Token | Exception] = field(default_factory=SimpleQueue)
    ended: set[int] = field(default_factory=set)  # choices that need no more tokens

    def cancel(self) -> None:
        """Stop all choices: the client has left, or has all it needs."""
        self.ended = set(range(self.request.n))

    def tokens(self, gone: Callable[[], bool]) -> Iterator[Token]:
        """Yield the tokens of all choices until they have ended; raise what failed, ConnectionError if `gone`."""
        looked = time.monotonic()
        while len(self.ended) < self.request.n:
            if time.monotonic() - looked > POLL_SECONDS:
                looked = time.monotonic()
                if gone():
                    raise ConnectionError
            try:
                event = self.events.get(timeout=POLL_SECONDS)
            except Empty:
                continue
            if isinstance(event, Exception):
                raise event
            if event.choice not in self.ended:
                if event.finish is not None:
                    self.ended.add(event.choice)
                yield event


class Engine(Protocol):
    """What computes the tokens."""

    vocab_size: int

    def submit(self, job: Job) -> None:
        """Queue a job; its tokens come through `job.events`."""


def failed(error: Exception) -> ApiError:
    """Return the error that a client receives if the model failed."""
    return ApiError(500, f"the model failed: {' '.join(str(error).split())[:200] or type(error).__name__}")
