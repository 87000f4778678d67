"""Checks a loaded model once: learning in parts, and its gradient, are those of plain autograd on the whole model.

What does not hold with shared prompts is learned without; what does not hold without is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.packing import pack
from sdpo_mlx.backends.torch import generation
from sdpo_mlx.backends.torch.adapter import active
from sdpo_mlx.backends.torch.gradient import hidden_states, ids_on
from sdpo_mlx.backends.torch.model import Model
from sdpo_mlx.backends.torch.out_of_memory import is_out_of_memory
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.types import IntArray

START = 1e-3  # instead of the zeros that one factor of LoRA begins with, behind which the other has no gradient
FIX = "use another model, such as a llama, qwen3, gemma3, mistral or phi3 one, or --backend mlx"


@dataclass(frozen=True)
class Precision:
    """How well two orders of summation agree: in probabilities, in log-probs on average, in the gradient's norm.

    Float32 comes out near 1e-6. In 16 bits logits are rounded by up to 0.1, and each rounding of an activation goes on
    through the gradient of a text of 30 tokens; a lost prefix, state or scale shows as 0.5 and more.
    """

    probability: float
    log_prob: float
    gradient: float


EXACT = Precision(1e-4, 1e-3, 1e-2)
ROUNDED = Precision(2e-2, 0.25, 0.3)


@dataclass(frozen=True)
class Found:
    """What one way of running the text gave: probabilities of each response (T, V), loss, and its gradient."""

    probabilities: list[Tensor]
    loss: float
    grads: dict[str, Tensor]


@dataclass(frozen=True)
class Text:
    """About 30 tokens: a prompt with two responses, and one that begins alike."""

    prompts: Sequence[IntArray]
    responses: Sequence[IntArray]


def checked(model: Model, parameters: Mapping[str, nn.Parameter]) -> Model:
    """The model with `shares` and `batched` as they hold for it. Raise ConfigError if it cannot be trained."""
    text = _text(model)
    with _started(parameters):
        try:
            whole = _whole(model, parameters, text)
        except Exception as error:  # an unknown architecture may fail in any way
            if is_out_of_memory(error):
                raise
            raise _unsupported(model, f"a short text cannot be run ({_line(error)})") from error
        found = replace(model, shares=_shares(model, parameters, text, whole))
    return replace(found, batched=_batches(found, text))


def _text(model: Model) -> Text:
    ids = ((np.arange(40) * 37 + 11) % model.vocab_size).astype(np.int32)
    same, other = np.append(ids[:17], ids[20:22]), np.append(ids[:17], ids[30:31])
    return Text([same, same, other], [ids[1:5], ids[6:8], ids[9:12]])


def _shares(model: Model, parameters: Mapping[str, nn.Parameter], text: Text, whole: Found) -> bool:
    """Whether the parts give the whole model's distributions and gradient with shared prompts, or only without."""
    why, cause, precision = "", None, _precision(model)
    for share in (True, False):
        try:
            parts, cause = _parts(model, parameters, text, share), None
        except Exception as error:  # an unknown cache may fail in any way
            if is_out_of_memory(error):
                raise
            why, cause = f"its parts cannot be run ({_line(error)})", error
            continue
        pairs = zip(parts.probabilities, whole.probabilities, strict=True)
        worst = max(float((ours - theirs).abs().nan_to_num(torch.inf).max()) for ours, theirs in pairs)
        gap = _norm({name: parts.grads[name] - each for name, each in whole.grads.items()}) / _norm(whole.grads)
        if worst <= precision.probability and gap <= precision.gradient:
            return share
        why = f"its parts differ from the whole by {worst:.1e} in probability and by {gap:.1e} in the gradient"
    raise _unsupported(model, why) from cause


def _batches(model: Model, text: Text) -> bool:
    """Whether prompts of different lengths can be generated together. Raise ConfigError if not even one alone can."""
    why, cause = "", None
    for batched in (True, False):
        try:
            (worst, mean), cause = _generated(replace(model, batched=batched), text), None
        except Exception as error:  # an unknown cache may fail in any way
            if is_out_of_memory(error):
                raise
            why, cause = f"it cannot generate ({_line(error)})", error
            continue
        precision = _precision(model)
        if worst <= precision.probability and mean <= precision.log_prob:
            return batched
        why = f"generated tokens differ from the whole model's by {worst:.1e} in probability"
    raise _unsupported(model, why) from cause


def _generated(model: Model, text: Text) -> tuple[float, float]:
    """How far a few generated tokens' probabilities are from the whole model's at worst, and log-probs on average."""
    ids = np.append(text.prompts[0], text.responses[0])
    prompts, seeds = [ids[:9], ids[5:6], ids[3:8]], [[1, 2], [3], [4]]
    half = frozenset(range(0, model.vocab_size, 2))  # some rollouts end before others
    gaps, worst = list[float](), 0.0
    for at, _, found in generation.generate(model, prompts, SamplingParams(4, 1.0, 1.0, half), seeds):
        logps_TV = torch.log_softmax(_logits(model, prompts[at], found.ids_T), -1)
        right_T = logps_TV.gather(-1, ids_on(model, found.ids_T)[:, None])[:, 0].cpu().numpy()
        worst = max(worst, float(np.abs(np.exp(found.logps_T) - np.exp(right_T)).max()))
        gaps += np.abs(found.logps_T - right_T).tolist()
    return worst, float(np.mean(gaps))


def _whole(model: Model, parameters: Mapping[str, nn.Parameter], text: Text) -> Found:
    """The whole model on one sequence after the other."""
    pairs = zip(text.prompts, text.responses, strict=True)
    logits = [_logits(model, *pair, gradient=True) for pair in pairs]
    return _found(logits, list(range(len(logits))), parameters, text)


def _parts(model: Model, parameters: Mapping[str, nn.Parameter], text: Text, share: bool) -> Found:
    """Body and head as learning runs them."""
    logits, members = list[Tensor](), list[int]()
    for unit in pack(text.prompts, text.responses, 10_000, share=share):
        logits += model.logits(hidden_states(model, unit)).float().split(list(unit.counts))
        members += unit.members
    return _found(logits, members, parameters, text)


def _found(
    logits: Sequence[Tensor], members: Sequence[int], parameters: Mapping[str, nn.Parameter], text: Text
) -> Found:
    ordered = [logits[list(members).index(n)] for n in range(len(members))]
    loss = _loss(ordered, text)
    names = list(parameters)
    grads = torch.autograd.grad(loss, [parameters[name] for name in names], allow_unused=True)
    filled = (g if g is not None else torch.zeros_like(parameters[n]) for n, g in zip(names, grads, strict=True))
    return Found(
        [each.detach().softmax(-1) for each in ordered], float(loss.detach()), dict(zip(names, filled, strict=True))
    )


def _loss(logits: Sequence[Tensor], text: Text) -> Tensor:
    """Mean negative log-likelihood of the responses."""
    logps = [
        torch.log_softmax(each, -1).gather(-1, torch.from_numpy(response.astype(np.int64)).to(each.device)[:, None])
        for each, response in zip(logits, text.responses, strict=True)
    ]
    return -torch.cat(logps).mean()


def _logits(model: Model, prompt: IntArray, response: IntArray, gradient: bool = False) -> Tensor:
    """The whole model's logits (T, V) that predict a response; float32."""
    with torch.set_grad_enabled(gradient):
        ids = ids_on(model, np.append(prompt, response[:-1]))[None]
        logits: Tensor = model.whole(input_ids=ids, use_cache=False).logits[0, prompt.size - 1 :].float()
    return logits


@contextmanager
def _started(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Inside, factors that begin at zero are small random numbers."""
    generator = torch.Generator().manual_seed(0)
    zeros = {name: each for name, each in parameters.items() if not bool(each.any())}
    begun = {n: START * torch.randn(each.shape, generator=generator).to(each) for n, each in zeros.items()}
    with active(parameters, begun):
        yield


def _precision(model: Model) -> Precision:
    exact = model.whole.dtype == torch.float32 and not getattr(model.whole, "is_quantized", False)
    return EXACT if exact else ROUNDED


def _norm(grads: Mapping[str, Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(list(grads.values())))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _unsupported(model: Model, why: str) -> ConfigError:
    kind = model.whole.config.model_type
    return ConfigError(f"the architecture {kind!r} cannot be trained on torch yet: {why}", where="model.name", fix=FIX)
