"""What `batching.py` needs from transformers' continuous batching beyond its public names, and for which versions.

Another version may rename or change any of this, so `SUPPORTED` lists those it was tested with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from packaging.specifiers import SpecifierSet
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

SUPPORTED = SpecifierSet(">=5.23,<5.25")
LOGGER = "ContinuousBatchingLogger"
Draw = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # logits (B, V), uniforms (B, 1) to tokens and log-probs (B,)


def supported() -> bool:
    """Return whether this version of transformers was tested."""
    return transformers.__version__ in SUPPORTED


class Uniforms(ContinuousBatchingLogitsProcessorList):
    """Gives each row's uniform number to the draw; changes no logits.

    Arguments of a row are int32; two of them hold all bits of a float64. `number` returns it for a request's state,
    in the manager's thread.
    """

    def __init__(self, number: Callable[[Any], float]) -> None:
        super().__init__(LogitsProcessorList())
        self.number, self.tensors_required, self.do_processing = number, 2, True
        self.words = torch.zeros(2, 0, dtype=torch.int32)

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Set the numbers of padding rows to 0."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: Tensor) -> Tensor:
        """Write the numbers of the rows that get a token."""
        numbers = np.array([self.number(each.state) for each in requests_in_batch if each.has_new_token], np.float64)
        words = np.ascontiguousarray(numbers.view(np.int32).reshape(-1, 2).T)
        arg_storage[:2, : numbers.size] = torch.from_numpy(words)
        return arg_storage

    def __call__(self, _: Tensor, scores: Tensor, logits_processor_args: Tensor) -> Tensor:
        """Note where the numbers of this batch are; a captured graph reads the same place."""
        self.words = logits_processor_args[:2, : scores.shape[0]]
        return scores

    @property
    def numbers_B1(self) -> Tensor:
        """The batch's numbers in float64."""
        return self.words.T.contiguous().view(torch.float64)


def prepare(manager: ContinuousBatchingManager, number: Callable[[Any], float], draw: Draw) -> None:
    """Replace the manager's draw by `draw`, allocate its cache, and capture its graphs if it has any."""
    uniforms = Uniforms(number)
    manager.logit_processor = uniforms
    processor = manager.batch_processor = manager._create_batch_processor()

    def sample(scores: Tensor, output_ids: Tensor) -> None:
        tokens, logps = draw(scores[0], uniforms.numbers_B1)
        output_ids[0, : tokens.numel()].copy_(tokens)
        output_ids[1, : tokens.numel()].copy_(logps.view(torch.int32))

    processor.model_runner._sample = sample
    manager.warmup()


def forget_prefixes(manager: ContinuousBatchingManager) -> None:
    """Drop the keys of earlier prompts, which the manager would use again though the weights have changed."""
    manager.batch_processor.cache.reset()


def names(first: str, rows: int) -> list[str]:
    """The names of the rollouts of one prompt, which the manager derives from the first."""
    return [first, *(f"{first}__child#{n}" for n in range(rows - 1))]


def add_group(manager: ContinuousBatchingManager, prompt: list[int], names: Sequence[str], **options: Any) -> None:
    """Add one prompt with several rollouts (`names`), prefilled once."""
    manager.num_return_sequences = len(names)
    manager.add_request(prompt, names[0], **options)


def generated(state: Any) -> list[int]:
    """The tokens of a request so far: those before it lost its place in the cache count as its prompt."""
    before: list[int] = state.initial_tokens[state._true_initial_tokens :] if state._true_initial_tokens else []
    return before + state.generated_tokens if before else state.generated_tokens


def deliver(manager: ContinuousBatchingManager, state: Any) -> None:
    """End a request with the tokens that it has."""
    manager.output_router.deliver(state.to_generation_output())
    manager.cancel_request(state.request_id)


def failure(manager: ContinuousBatchingManager) -> BaseException | None:
    """What ended the manager's thread."""
    return manager.background_thread_status.fatal_error


def flash_attention(whole: Any) -> str | None:
    """The flash attention that is installed here and fits this model; None without. Fetches nothing."""
    usable = whole.device.type == "cuda" and whole.dtype in (torch.float16, torch.bfloat16)
    if not usable or not whole._supports_flash_attn or not whole._can_set_attn_implementation():
        return None
    if is_flash_attn_3_available(kernels_fallback_ok=False):
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available(kernels_fallback_ok=False) else None


def bytes_per_token(whole: Any) -> int:
    """Bytes of a token's keys and values in all layers."""
    config = whole.config.get_text_config()
    numbers = 2 * config.num_hidden_layers * find_num_key_value_heads(config) * find_head_dim(config)
    return int(numbers * whole.dtype.itemsize)
