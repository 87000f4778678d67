"""Checks a loaded model once: learning in parts, and its gradient, are those of plain autograd on the whole model.

What does not hold with shared prompts is learned without; what does not hold without is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.packing import pack
from sdpo_mlx.backends.torch import generation
from sdpo_mlx.backends.torch.adapter import active
from sdpo_mlx.backends.torch.gradient import hidden_states, ids_on
from sdpo_mlx.backends.torch.model import Model
from sdpo_mlx.backends.torch.out_of_memory import is_out_of_memory
from sdpo_mlx.backends.torch.tree_attention import Kind, kinds
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.types import IntArray

START = 1e-3  # instead of the zeros that one factor of LoRA begins with, behind which the other has no gradient
FIX = "use another model, such as a llama, qwen3, gemma3, mistral or phi3 one, or --backend mlx"


@dataclass(frozen=True)
class Precision:
    """How well two orders of summation agree: in probabilities, in log-probs on average, in the gradient's norm.

    Float32 comes out near 1e-6. In 16 bits each rounding of an activation goes on through the model: logits move by up
    to 0.6, a probability near a half by 0.4, the gradient by 0.27 at most. A lost prefix, state or position changes
    the gradient by 0.75 and more, and what a peaked model expects by nearly 1.
    """

    probability: float
    log_prob: float
    gradient: float


EXACT = Precision(1e-4, 1e-3, 1e-2)
# In 16 bits: these, or as much more as the model's own distributions move by rounding (`_rounding`), up to a bound
# that what is wrong is beyond. The gradient moves by about as much in models that expect one token as in others.
ROUNDED = Precision(2e-2, 0.25, 0.45)
WRONG = Precision(0.5, 1.5, 0.45)
MARGIN = 3.0  # the largest difference among 9 positions varies by that much from one rounding to another
ROUNDINGS = 3


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
        precision = _precision(model, text)
        found = replace(model, shares=_shares(model, parameters, text, whole, precision))
        found = replace(found, tree=_tree(found, parameters, text, whole, precision) if found.shares else None)
    return replace(found, batched=_batches(found, text, precision))


def _text(model: Model) -> Text:
    ids = ((np.arange(40) * 37 + 11) % model.vocab_size).astype(np.int32)
    same, other = np.append(ids[:17], ids[20:22]), np.append(ids[:17], ids[30:31])
    return Text([same, same, other], [ids[1:5], ids[6:8], ids[9:12]])


def _shares(
    model: Model, parameters: Mapping[str, nn.Parameter], text: Text, whole: Found, precision: Precision
) -> bool:
    """Whether the parts give the whole model's distributions and gradient with shared prompts, or only without."""
    why, cause = "", None
    for share in (True, False) if model.shares else (False,):
        try:
            parts, cause = _parts(model, parameters, text, share), None
        except Exception as error:  # an unknown cache may fail in any way
            if is_out_of_memory(error):
                raise
            why, cause = f"its parts cannot be run ({_line(error)})", error
            continue
        worst, gap = _differences(parts, whole)
        if worst <= precision.probability and gap <= precision.gradient:
            return share
        why = f"its parts differ from the whole by {worst:.1e} in probability and by {gap:.1e} in the gradient"
    raise _unsupported(model, why) from cause


def _tree(
    model: Model, parameters: Mapping[str, nn.Parameter], text: Text, whole: Found, precision: Precision
) -> Kind | None:
    """The kind of mask with which a tree of texts in one row gives the same; None if there is none."""
    for kind in kinds(model.whole, model.body, model.device, model.recompute):
        with suppress(Exception):  # an attention or a compiler may fail in any way; a cache does without
            worst, gap = _differences(_parts(replace(model, tree=kind), parameters, text, share=True), whole)
            if worst <= precision.probability and gap <= precision.gradient:
                return kind
    return None


def _differences(parts: Found, whole: Found) -> tuple[float, float]:
    """The largest difference in probability, and that of the gradients relative to the whole model's."""
    pairs = zip(parts.probabilities, whole.probabilities, strict=True)
    worst = max(float((ours - theirs).abs().nan_to_num(torch.inf).max()) for ours, theirs in pairs)
    return worst, _norm({name: parts.grads[name] - each for name, each in whole.grads.items()}) / _norm(whole.grads)


def _batches(model: Model, text: Text, precision: Precision) -> bool:
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


def _precision(model: Model, text: Text) -> Precision:
    if model.whole.dtype == torch.float32 and not getattr(model.whole, "is_quantized", False):
        return EXACT
    pairs = list(zip(text.prompts, text.responses, strict=True))
    ids_R = ids_on(model, np.concatenate(text.responses))[:, None]
    logps_RV = torch.cat([torch.log_softmax(_logits(model, *pair), -1) for pair in pairs])
    worst, mean = 0.0, 0.0
    for seed in range(ROUNDINGS):
        with _rounding(model.whole, seed):
            moved_RV = torch.cat([torch.log_softmax(_logits(model, *pair), -1) for pair in pairs])
        worst = max(worst, float((moved_RV.exp() - logps_RV.exp()).abs().max()))
        mean = max(mean, float((moved_RV - logps_RV).gather(-1, ids_R).abs().mean()))
    return Precision(
        min(max(ROUNDED.probability, MARGIN * worst), WRONG.probability),
        min(max(ROUNDED.log_prob, MARGIN * mean), WRONG.log_prob),
        ROUNDED.gradient,
    )


@contextmanager
def _rounding(whole: nn.Module, seed: int) -> Iterator[None]:
    """Inside, each number that a linear layer returns is rounded up or down at random, as by another kernel."""
    generator = torch.Generator().manual_seed(seed)

    def moved(_module: nn.Module, _inputs: object, found: Tensor) -> Tensor:
        signs = torch.randint(0, 2, found.shape, generator=generator).to(found.device) * 2.0 - 1.0
        return (found.float() * (1.0 + torch.finfo(found.dtype).eps / 2 * signs)).to(found.dtype)

    hooks = [each.register_forward_hook(moved) for each in whole.modules() if isinstance(each, (nn.Linear, Conv1D))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _norm(grads: Mapping[str, Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(list(grads.values())))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _unsupported(model: Model, why: str) -> ConfigError:
    kind = model.whole.config.model_type
    return ConfigError(f"the architecture {kind!r} cannot be trained on torch yet: {why}", where="model.name", fix=FIX)
