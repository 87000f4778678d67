"""The contract between the loop and a backend.

Token ids, top-k figures and scalars cross it as numpy; full-vocabulary logits never do. No tokenizer
goes in and no lazy array comes out, so that the same loop runs on every backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from sdpo_mlx.config import ObjectiveConfig, TeacherConfig
from sdpo_mlx.types import DistillSample, FloatArray, Generation, IntArray, Role

CONCURRENCY = 64  # answers written at once where no plan has said otherwise
MICRO_BATCH_TOKENS = 8_192  # tokens forwarded at once, alike
PREFILL = 2_048  # tokens of a prompt or a shared prefix that run at once: bounds their activations
CHUNK_BYTES = 16 * 2**20  # one float32 copy of the logits that the loss head computes at once

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class PolicyInfo:
    """What a policy is and what it may promise; `bitwise` says that resuming gives equal bytes."""

    name: str
    backend: str
    device: str
    dtype: str
    vocab_size: int
    context_length: int
    trainable: int
    parameters: int
    bitwise: bool
    details: Mapping[str, str]


@dataclass(frozen=True)
class SamplingParams:
    """How to sample: temperature 0 is greedy; `eos_ids` end an answer and are kept in it.

    At most `concurrency` answers are written at once, but always a whole group; no answer depends on it.
    """

    max_tokens: int
    temperature: float
    top_p: float
    eos_ids: frozenset[int]
    concurrency: int = CONCURRENCY


@dataclass(frozen=True)
class Scores:
    """Log-probs of given tokens at temperature 1 and, when asked, the top-k at each position."""

    logps_T: FloatArray
    top_ids_TK: IntArray | None
    top_logps_TK: FloatArray | None


@dataclass(frozen=True)
class Update:
    """One learning step: means over counted tokens; `applied` is False when nothing was changed.

    `divergence_T` holds, a sample at a time and in the order given, log q - log p of each response
    token (empty for samples that were not distilled). `reason` says why nothing was applied; `warnings` are what
    whoever watches should know, each in one line.
    """

    applied: bool
    reason: str
    loss: float
    divergence: float
    entropy: float
    importance_mean: float
    importance_clipped: float
    grad_norm: float
    tokens: int
    divergence_T: tuple[FloatArray, ...]
    teacher_seconds: float
    non_finite: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def no_update(reason: str) -> Update:
    """What a step says that changed nothing and had no token to learn from."""
    return Update(False, reason, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0, (), 0.0)


class Policy(Protocol):
    """The model with its student adapter, teacher adapter and optimizer."""

    @property
    def info(self) -> PolicyInfo: ...

    def generate(
        self,
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[int, int, Generation]]:
        """One rollout a seed for each prompt: yields (prompt, rollout, generation) as they finish.

        The prompt is prefilled once a group. A rollout draws with its own seed alone.
        Raises KeyboardInterrupt when `interrupted()` turns true between two tokens.
        """

    def stream(self, prompt: IntArray, sampling: SamplingParams, seed: int) -> Iterator[int]:
        """The tokens of one answer as they come, the same as `generate` gives; the stop token is the last of them."""

    def score(
        self, role: Role, sequences: Sequence[IntArray], spans: Sequence[tuple[int, int]], top_k: int = 0
    ) -> list[Scores]:
        """Log-probs of the tokens in each span, under the student or the teacher."""

    def learn(
        self,
        samples: Sequence[DistillSample],
        objective: ObjectiveConfig,
        learning_rate: float,
        *,
        temperature: float = 1.0,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Update:
        """One optimizer step on the samples, normalised over all of them whatever the micro-batch.

        Raises KeyboardInterrupt, with nothing changed, when `interrupted()` turns true between micro-batches.
        """

    def update_teacher(self, teacher: TeacherConfig) -> None:
        """Move the teacher towards the student (SDPO.md section 4); once a rollout batch."""

    def state(self) -> Mapping[str, Arrays]:
        """Named arrays: `student`, `teacher`, `optimizer`; bit-exact through `load_state`."""

    def load_state(self, state: Mapping[str, Arrays]) -> None:
        """Restore what `state` gave."""

    def load_student(self, arrays: Arrays) -> None:
        """Put an adapter's arrays into the student alone; raises ConfigError where they do not fit."""

    def adapter_config(self) -> dict[str, Any]:
        """What `adapter_config.json` beside the student's arrays says, in mlx-lm's layout."""

    def memory(self) -> dict[str, int]:
        """`current`, `peak` and `limit` in bytes (limit 0: unknown); reading it restarts the peak.

        Where the backend can tell, the peaks of `generate`, `teacher` and `learn` besides.
        """
