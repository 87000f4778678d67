"""The interface of what samples rollouts, and the loop of `generation.py` behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.torch import generation
from sdpo_mlx.backends.torch.model import Model
from sdpo_mlx.types import Generation, IntArray

Sampled = Iterator[tuple[int, int, Generation]]


class RolloutEngine(Protocol):
    """Samples rollouts under the student's weights as they are when `generate` is called."""

    name: str

    def generate(
        self,
        model: Model,
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Sampled:
        """See `Policy.generate`; nothing of it runs once the iterator is exhausted, closed or has raised."""

    def stream(self, model: Model, prompt: IntArray, sampling: SamplingParams, seed: int) -> Iterator[int]:
        """See `Policy.stream`."""

    def rest(self) -> None:
        """Free the memory that a learning step needs; called before each."""


class Loop:
    """The loop of `generation.py`."""

    name = "loop"
    generate = staticmethod(generation.generate)
    stream = staticmethod(generation.stream)

    def rest(self) -> None:
        """It keeps nothing."""
