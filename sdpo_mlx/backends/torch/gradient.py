"""The gradient of one step in three phases, so that a batch's logits never exist.

(A) The model runs, its graph is kept. (B) Head, loss and the gradient with respect to the hidden states, a chunk of
response positions at a time. (C) Backwards through the model. Gradients add up in each parameter's `grad`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from sdpo_mlx.backends.loss_head import GradientPass, LearnBatch, Rows, RowStatistics, TeacherSet, by_member
from sdpo_mlx.backends.packing import Unit
from sdpo_mlx.backends.torch.adapter import active
from sdpo_mlx.backends.torch.kv_cache import prefill
from sdpo_mlx.backends.torch.losses import row_loss
from sdpo_mlx.backends.torch.model import Model
from sdpo_mlx.types import IntArray


class TorchGradientPass(GradientPass):
    """See `GradientPass`; `parameters` hold the student."""

    def __init__(self, batch: LearnBatch, model: Model, parameters: Mapping[str, nn.Parameter]) -> None:
        # A block that runs again in the backward pass cannot continue from another's cache.
        super().__init__(batch, model.chunk, share=model.shares and not model.recompute)
        self.model, self.parameters, self.finite = model, parameters, True
        for parameter in parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.grads = {name: each.grad for name, each in parameters.items()}

    def add(self, unit: Unit, seed: int) -> tuple[float, list[RowStatistics], bool]:
        """See `GradientPass.add`; the sum is checked, so that only the first unit that spoils it is named."""
        dropout = _Dropout(self.model.whole, seed)
        with dropout:
            states_RD = hidden_states(self.model, unit)
        total, cotangent_RD, figures = 0.0, torch.zeros_like(states_RD), []
        for part, teacher_RV, rows in self.chunks(unit, states_RD.detach()):
            entering = states_RD[part].detach().requires_grad_()
            loss, figure = self._loss(entering, teacher_RV, rows)
            loss.backward()
            assert entering.grad is not None
            cotangent_RD[part] = entering.grad
            total += float(loss.detach())
            figures.append(_numpy(figure))
        with dropout:  # blocks that run again draw the same masks again
            states_RD.backward(cotangent_RD)
        self.grads = {name: each.grad for name, each in self.parameters.items()}
        before, self.finite = self.finite, self.finite and all(bool(g.isfinite().all()) for g in self.grads.values())
        return total, by_member(figures, unit), self.finite or not before

    @torch.no_grad()
    def teacher_logits(self, hidden: Sequence[Tensor]) -> Tensor:
        """See `GradientPass.teacher_logits`."""
        return mixed_logits(self.model, self.parameters, hidden, self.batch.teacher_sets)

    @torch.no_grad()
    def statistics(self, hidden_RD: Tensor, teacher_RV: Tensor, rows: Rows) -> RowStatistics:
        """See `GradientPass.statistics`."""
        return _numpy(self._loss(hidden_RD, teacher_RV, rows)[1])

    def concatenate(self, arrays: list[Tensor]) -> Tensor:
        """See `GradientPass.concatenate`."""
        return torch.cat(arrays)

    def _loss(self, hidden_RD: Tensor, teacher_RV: Tensor | None, rows: Rows) -> tuple[Tensor, RowStatistics]:
        device = hidden_RD.device
        arrays = replace(rows, **{name: torch.from_numpy(array).to(device) for name, array in vars(rows).items()})
        on_device = replace(arrays, ids_R=arrays.ids_R.long())  # `gather` takes int64 alone
        logits = self.model.logits(hidden_RD)
        return row_loss(logits, teacher_RV, on_device, self.batch.objective, self.batch.temperature)


def mixed_logits(
    model: Model, parameters: Mapping[str, nn.Parameter], hidden: Sequence[Tensor], sets: Sequence[TeacherSet]
) -> Tensor:
    """Logits (R, V) of hidden states, one tensor per set, mixed by the sets' shares; float32."""
    trained = {id(each) for each in model.head.parameters()}
    names = [name for name, each in parameters.items() if id(each) in trained]
    total = torch.zeros((), device=model.device)
    for states, source in zip(hidden, sets, strict=True):
        with active(parameters, {name: source.weights[name] for name in names}):
            total = total + source.share * model.logits(states).float()
    return total


def hidden_states(model: Model, unit: Unit) -> Tensor:
    """The last hidden states (R, d) that predict the unit's responses, prefixes computed once."""
    found: list[Tensor] = []
    prefixes: dict[int, DynamicCache] = {}
    for place, node in enumerate(unit.nodes):
        before = None if node.parent is None else prefixes[node.parent]
        if node.rows:
            states = model.hidden(ids_on(model, node.ids_NT), before)
            found.append(states.reshape(-1, states.shape[-1]))
        else:
            prefixes[place] = prefill(model.body, ids_on(model, node.ids_NT), before)
    return torch.cat(found)[ids_on(model, unit.take_R)]


def ids_on(model: Model, ids: IntArray) -> Tensor:
    """Token ids or positions as int64 on the model's device."""
    return torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(model.device)


def _numpy(figures: RowStatistics) -> RowStatistics:
    return RowStatistics(*(column.cpu().numpy() for column in figures))


class _Dropout:
    """Inside, the adapter's dropout is on, with a mask that follows from the seed alone."""

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
