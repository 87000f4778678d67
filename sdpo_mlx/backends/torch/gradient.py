"""The gradient of one step in three phases, so that a batch's logits never exist.

(A) The trunk runs, its graph is kept. (B) Head, loss and the gradient with respect to the hidden states, a chunk of
response positions at a time; the teacher is there as hidden states. (C) Backwards through the trunk. Units and chunks
add up, since all normalisation lies in the rows' weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sdpo_mlx.backends.packing import Unit, pack
from sdpo_mlx.backends.torch.adapter import Weights, active
from sdpo_mlx.backends.torch.kv_cache import Prefix, prefill
from sdpo_mlx.backends.torch.loading import Model
from sdpo_mlx.backends.torch.loss_head import Head, LearnBatch
from sdpo_mlx.backends.torch.losses import RowStatistics
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.types import IntArray


@dataclass
class Gradient:
    """What one pass over all samples gives: figures a sample (numpy); the gradient lies in the parameters.

    `suspects` are the samples of the units whose gradient was not finite.
    """

    loss: float
    statistics: list[RowStatistics]
    suspects: tuple[int, ...] = ()


def gradient(
    model: Model,
    parameters: Mapping[str, nn.Parameter],
    lesson: LearnBatch,
    budget: int,
    checkpoint: Callable[[], None],
) -> Gradient:
    """Loss, gradient and per-token figures over all samples, whatever the token budget of one pass.

    The gradient is left in each parameter's `grad`. `checkpoint` is called between units and may raise to give up.
    """
    head, samples = Head(model, parameters, lesson), lesson.samples
    statistics: list[RowStatistics | None] = [None] * len(samples)
    total, suspects = 0.0, list[int]()
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    prompts, responses = [s.student_ids[: s.student_span[0]] for s in samples], [s.ids_T for s in samples]
    units = pack(prompts, responses, budget, lesson.own, share=not model.recompute)
    for number, unit in enumerate(units):
        checkpoint()
        loss, figures = _of_unit(head, unit, derive(lesson.seed, number))
        total += loss
        if not suspects and not all(bool(each.grad.isfinite().all()) for each in parameters.values()):
            suspects.extend(unit.members)
        for member, figure in zip(unit.members, figures, strict=True):
            statistics[member] = figure
    return Gradient(total, [figure for figure in statistics if figure is not None], tuple(suspects))


def _of_unit(head: Head, unit: Unit, seed: int) -> tuple[float, list[RowStatistics]]:
    """Phases A, B and C for one unit: loss, figures a member; gradients add up in the parameters."""
    dropout = _Dropout(head.model.whole, seed)
    with dropout:
        rows = _rows(head.model, unit)
    states_RD = rows[_ids(unit.take_R, head.model)]
    loss, cotangent_RD, figures = head.run(states_RD.detach(), unit)
    with dropout:  # blocks that run again draw the same masks again
        states_RD.backward(cotangent_RD)
    return loss, figures


@torch.no_grad()
def hidden_states(
    model: Model,
    parameters: Mapping[str, nn.Parameter],
    weights: Weights,
    sequences: Sequence[tuple[IntArray, IntArray]],
    budget: int,
    checkpoint: Callable[[], None],
) -> list[Tensor]:
    """The last hidden states at the positions that predict each response (T, d), under `weights`.

    `checkpoint` is called between units and may raise to give up; the student is back in the model by then.
    """
    result: list[Tensor] = [torch.zeros(0)] * len(sequences)
    with active(parameters, weights):
        for unit in pack([prompt for prompt, _ in sequences], [response for _, response in sequences], budget):
            checkpoint()
            rows = _rows(model, unit)
            flat = rows[_ids(unit.take_R, model)]
            for member, part in zip(unit.members, flat.split(list(unit.counts)), strict=True):
                result[member] = part
    return result


def _rows(model: Model, unit: Unit) -> Tensor:
    """The last hidden states of all rows, one after the other."""
    found: list[Tensor] = []
    stretches: dict[int, Prefix] = {}
    for place, node in enumerate(unit.nodes):
        before = None if node.parent is None else stretches[node.parent]
        if node.rows:
            states = model.hidden(_ids(node.ids_NT, model), before)
            found.append(states.reshape(-1, states.shape[-1]))
        else:
            stretches[place] = prefill(model.body, _ids(node.ids_NT, model), before)
    return torch.cat(found)


def _ids(ids: IntArray, model: Model) -> Tensor:
    return torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(model.device)


class _Dropout:
    """Inside, the adapter's dropout is on, with a mask that the seed alone decides."""

    def __init__(self, whole: nn.Module, seed: int) -> None:
        self.layers = [each for name, each in whole.named_modules() if "lora_dropout" in name]
        self.seed = seed

    def __enter__(self) -> None:
        torch.manual_seed(self.seed)
        for layer in self.layers:
            layer.train()

    def __exit__(self, *exception: object) -> None:
        for layer in self.layers:
            layer.eval()
