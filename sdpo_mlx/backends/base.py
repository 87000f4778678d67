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

CONCURRENCY = 64  # rollouts generated at once unless the memory plan sets another number
MICRO_BATCH_TOKENS = 8_192  # tokens forwarded at once, likewise
QUANTIZED_ROWS = 32  # that Metal multiplies with quantized weights in the time of eight (mlx 3852, 4265)
PREFILL = 2_048  # tokens of a prompt or a shared prefix that run at once: bounds their activations
CHUNK_BYTES = 16 * 2**20  # one float32 copy of the logits that the loss head computes at once
TORCH_CHUNK_BYTES = 64 * 2**20  # likewise on torch

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class PolicyInfo:
    """What a policy is; `bitwise` is whether a resumed run gives equal bytes.

    `aborts` is whether the device ends the process, uncaught, when memory runs out or a command takes too long;
    `together` are the rollouts that are decoded in about the time of a few.
    """

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
    aborts: bool = False
    together: int = 1


def never(_: Sequence[int]) -> bool:
    """Return False: a model without a stop text."""
    return False


@dataclass(frozen=True)
class SamplingParams:
    """How to sample: temperature 0 is greedy; `eos_ids` end a rollout and are kept in it.

    At most `concurrency` rollouts are generated at once, but always a whole group; no random number depends on it.
    `at_stop_text` returns whether the last of a rollout's tokens completes a text at which answers end
    (`Chat.at_stop_text`); that token is kept too.
    """

    max_tokens: int
    temperature: float
    top_p: float
    eos_ids: frozenset[int]
    concurrency: int = CONCURRENCY
    at_stop_text: Callable[[Sequence[int]], bool] = never

    def stops(self, ids: Sequence[int]) -> bool:
        """Return whether a rollout ends with the last of these tokens, by an end token or a stop text."""
        return ids[-1] in self.eos_ids or self.at_stop_text(ids)


@dataclass(frozen=True)
class Scores:
    """Log-probs of given tokens and, on request, the top-k at each position."""

    logps_T: FloatArray
    top_ids_TK: IntArray | None
    top_logps_TK: FloatArray | None


@dataclass(frozen=True)
class Update:
    """One learning step: means over counted tokens; `applied` is False when nothing was changed.

    `divergence_T` holds, per sample in the order given, log q - log p of each response token (empty for samples
    that were not distilled). `reason` is why nothing was applied; `warnings` are for the user, one line each.
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
    """Return the update of a step that changed nothing and had no token to learn from."""
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
        """Yield (prompt, rollout, generation) as they finish: for each prompt one rollout per seed.

        The prompt is prefilled once per group. A rollout is sampled with its own seed alone: it does not depend on
        the others, up to the rounding of kernels that change with the batch. The importance weight carries that.
        Raise KeyboardInterrupt if `interrupted()` is true between two tokens.
        """

    def stream(self, prompt: IntArray, sampling: SamplingParams, seed: int) -> Iterator[int]:
        """Yield the tokens of one rollout, the same as `generate` returns; the token that ends it is the last."""

    def score(
        self,
        role: Role,
        sequences: Sequence[IntArray],
        spans: Sequence[tuple[int, int]],
        top_k: int = 0,
        temperature: float = 1.0,
    ) -> list[Scores]:
        """Return the log-probs of the tokens in each span, under the student or the teacher."""

    def learn(
        self,
        samples: Sequence[DistillSample],
        objective: ObjectiveConfig,
        learning_rate: float,
        *,
        temperature: float = 1.0,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Update:
        """Take one optimizer step on the samples, normalised over all of them whatever the micro-batch.

        Raise KeyboardInterrupt, with nothing changed, if `interrupted()` is true between micro-batches.
        """

    def warnings(self) -> tuple[str, ...]:
        """Return what the user should know of this model on this backend, one line each."""

    def check_gradient(self, *, slope: bool = True) -> tuple[str, ...]:
        """Check gradients at each start of a run; return warnings, one line each.

        MLX on a GPU, once for each machine, version and architecture: raise SelfTestError if a small model's gradient
        is not the CPU's. With `slope`: raise ConfigError if the gradient of this model on a small text is not finite,
        zero, or not the slope of its own log-probs.
        """

    def update_teacher(self, teacher: TeacherConfig) -> None:
        """Move the teacher towards the student; once per rollout batch."""

    def state(self) -> Mapping[str, Arrays]:
        """Return named arrays: `student`, `teacher`, `optimizer`; bit-exact through `load_state`."""

    def load_state(self, state: Mapping[str, Arrays]) -> None:
        """Restore what `state` returned."""

    def load_student(self, arrays: Arrays) -> None:
        """Load an adapter's arrays into the student alone. Raise ConfigError if they do not fit."""

    def pass_sizes(self, sampling: SamplingParams) -> dict[str, int]:
        """Return what runs at once: rollouts in phase `generate`, tokens in phase `learn`."""

    def limit_pass(self, phase: str, size: int) -> None:
        """Run at most so much at once in a phase from now on, groups included."""

    def adapter_config(self) -> dict[str, Any]:
        """Return the contents of `adapter_config.json`, in mlx-lm's layout."""

    def memory(self) -> dict[str, int]:
        """Return `current`, `peak` and `limit` in bytes (limit 0: unknown) and restart the peak.

        On MLX the peaks of `generate`, `teacher` and `learn` too.
        """
