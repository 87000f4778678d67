"""Sampling by transformers' continuous batching: paged keys, and CUDA graphs where flash attention is installed.

A rollout is the one that the loop samples with the same seed: each token is drawn with the same uniform number.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.torch import generation
from sdpo_mlx.backends.torch.model import Model
from sdpo_mlx.backends.torch.out_of_memory import free_bytes
from sdpo_mlx.backends.torch.rollouts import continuous_api as api
from sdpo_mlx.backends.torch.rollouts.engine import Sampled
from sdpo_mlx.types import FinishReason, Generation, IntArray

POLL = 0.05  # seconds between two looks at an interrupt
IN_FLIGHT = 2  # passes that may have begun after a token, when the tokens of one are fetched during the next
ROOM = 0.8  # of the free memory that the cache may fill; the rest is for a pass
MARGIN = 1.2  # the manager starts no new rollout when less than 15 % of its blocks are free


@dataclass(frozen=True)
class Row:
    """One rollout: its prompt and index, the tokens of its prompt, and its uniform numbers."""

    owner: tuple[int, int]
    prompt: int
    uniforms_T: Any  # float64


@dataclass(frozen=True)
class Size:
    """What a manager is made for: the tokens of a block, blocks, tokens of a pass, rows, and how tokens are drawn."""

    page: int
    blocks: int
    batch: int
    rows: int
    temperature: float
    top_p: float


class Batching:
    """A manager of transformers on the live model, whose weights need no copy; its thread runs in `generate` alone."""

    name = "batching"
    stream = staticmethod(generation.stream)

    def __init__(self) -> None:
        self.model: Model
        self.manager: Any = None
        self.size: Size | None = None
        self.sampling: SamplingParams
        self.rows: dict[str, Row] = {}
        # The manager's thread runs outside the main thread's handlers, and logs what is raised here.
        logging.getLogger(api.LOGGER).setLevel(logging.CRITICAL)

    def generate(
        self,
        model: Model,
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Sampled:
        """See `RolloutEngine.generate`. Raise what ended the manager's thread, such as torch.OutOfMemoryError."""
        if not any(seeds):
            return
        self.model = model
        with self._running(self._size(prompts, sampling, seeds), sampling) as manager:
            self._submit(manager, prompts, seeds)
            while self.rows:
                if interrupted():
                    raise KeyboardInterrupt
                found = manager.get_result(timeout=POLL)
                if (found is None and not manager.is_running()) or (found is not None and found.error):
                    raise _FailedError(found.error if found else "its thread ended")
                if found is not None and (row := self.rows.pop(found.request_id, None)):
                    yield *row.owner, _finished(found, sampling)

    def rest(self) -> None:
        """Free the cache, unless most of the device is free beside it: it is captured in graphs, which take seconds."""
        if self.manager is not None and not roomy(self.model.device):
            self.close()

    def close(self) -> None:
        """Free the cache."""
        if self.manager is not None:
            self.manager.destroy()
            self.model.whole.destroy_cached_continuous_batching_manager()
        self.manager = self.size = None

    @contextmanager
    def _running(self, size: Size, sampling: SamplingParams) -> Iterator[ContinuousBatchingManager]:
        """A manager whose thread runs inside. It is no daemon: the process would not end while it runs."""
        self.sampling, self.rows, done = sampling, {}, False
        with self._attention():
            try:
                manager = self._manager(size)
                manager.start()
                yield manager
                done = True
            except _FailedError as error:
                self.manager.stop(hard_stop=True)  # joins the thread, which then has noted why it ended
                raise api.failure(self.manager) or RuntimeError(f"continuous batching failed: {error}") from None
            finally:
                if self.manager is not None and self.manager.is_running():
                    self.manager.stop(keep_for_next_session=done, hard_stop=not done)
                if not done:
                    self.close()

    @contextmanager
    def _attention(self) -> Iterator[None]:
        """Sample with flash attention if there is one; learning keeps the attention that the model was loaded with."""
        whole, before = self.model.whole, self.model.whole.config._attn_implementation
        chosen = api.flash_attention(whole)
        if chosen is None:
            yield
            return
        whole.set_attn_implementation(chosen)
        try:
            yield
        finally:
            whole.set_attn_implementation(before)

    def _manager(self, size: Size) -> ContinuousBatchingManager:
        if self.size is None or not _serves(self.size, size):
            self.close()
            self.size = size
        config = ContinuousBatchingConfig(
            page_size=self.size.page,
            num_blocks=self.size.blocks,
            max_batch_tokens=self.size.batch,
            max_requests_per_batch=self.size.rows,
            max_memory_percent=0.95,  # `blocks` were chosen for the free memory
            return_logprobs=True,
            auto_switch_to_flash=False,  # it would fetch a kernel from the hub
            use_cuda_graph=None if self.size.top_p == 1.0 else False,  # the nucleus waits for the device
        )
        self.manager = self.model.whole.init_continuous_batching(GenerationConfig(eos_token_id=-1), config)
        if self.manager.batch_processor is None:
            api.prepare(self.manager, self._number, self._draw)
        else:
            api.forget_prefixes(self.manager)
        return self.manager

    def _submit(
        self, manager: ContinuousBatchingManager, prompts: Sequence[IntArray], seeds: Sequence[Sequence[int]]
    ) -> None:
        options = {"max_new_tokens": self.sampling.max_tokens, "eos_token_id": sorted(self.sampling.eos_ids)}
        for at, (ids, own) in enumerate(zip(prompts, seeds, strict=True)):
            # Of a prompt of one token nothing is left to prefill before its rollouts part.
            size = len(own) if ids.size > 1 else 1
            for first in range(0, len(own), max(size, 1)):
                names = api.names(f"{at}.{first}", size)
                for n, name in enumerate(names, first):
                    uniforms_T = np.random.default_rng(own[n]).random(self.sampling.max_tokens)
                    self.rows[name] = Row((at, n), ids.size, uniforms_T)
                api.add_group(manager, ids.tolist(), names, **options)

    def _number(self, state: Any) -> float:
        """The uniform number of a request's next token; called in the manager's thread before each pass."""
        row = self.rows.get(state.request_id)
        if row is None:  # ended at a stop text, or a row of the warm-up
            return 0.0
        tokens = api.generated(state)
        if tokens and self.sampling.at_stop_text(tokens):
            api.deliver(self.manager, state)
        # With two passes in flight, one may be beyond the last token.
        return float(row.uniforms_T[min(state.position_offset - row.prompt, row.uniforms_T.size - 1)])

    def _draw(self, logits_BV: Tensor, uniforms_B1: Tensor) -> tuple[Tensor, Tensor]:
        return generation.drawn(logits_BV, uniforms_B1, self.sampling)

    def _size(self, prompts: Sequence[IntArray], sampling: SamplingParams, seeds: Sequence[Sequence[int]]) -> Size:
        """What these rollouts need, and at most what the memory holds: rollouts without a place are begun again."""
        on_card = self.model.device.type == "cuda"
        page, batch = (256, 8_192) if on_card else (16, 512)  # flash attention asks for multiples of 256
        needed = sorted(
            -(-(p.size + sampling.max_tokens) // page) for p, own in zip(prompts, seeds, strict=True) for _ in own
        )
        rows = min(sampling.concurrency, len(needed))
        blocks = int(MARGIN * sum(needed[-rows:])) + 1
        if on_card:
            room = ROOM * (free_bytes(self.model.device) or 0)
            blocks = min(blocks, int(room / (page * api.bytes_per_token(self.model.whole))))
        else:
            blocks = min(blocks, 256)  # a pass attends to all of them
        return Size(page, max(blocks, needed[-1] + 1), batch, rows, sampling.temperature, sampling.top_p)


class _FailedError(Exception):
    """The manager's thread ended, or a request failed."""


def roomy(device: torch.device) -> bool:
    """Whether over half of a card is free."""
    return device.type == "cuda" and (free_bytes(device) or 0) > torch.cuda.mem_get_info(device)[1] / 2


def _serves(have: Size, wanted: Size) -> bool:
    """Whether a manager of one size does for another: the same draw, and enough of all else."""
    return have.blocks >= wanted.blocks and replace(have, blocks=wanted.blocks) == wanted


def _finished(found: Any, sampling: SamplingParams) -> Generation:
    tokens, logps = found.generated_tokens, found.logprobs
    ends = (n for n in range(max(1, len(tokens) - IN_FLIGHT), len(tokens)) if sampling.stops(tokens[:n]))
    size = next(ends, len(tokens))  # without what was drawn before the stop text was seen
    finish: FinishReason = "stop" if sampling.stops(tokens[:size]) else "length"
    return Generation(np.array(tokens[:size], dtype=np.int32), np.array(logps[:size], dtype=np.float32), finish)
