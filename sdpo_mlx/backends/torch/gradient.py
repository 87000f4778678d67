"""The gradient of one step in three phases, so that a batch's logits never exist.

(A) The model runs, its graph is kept. (B) Head, loss and the gradient with respect to the hidden states, a chunk of
response positions at a time. (C) Backwards through the model. Gradients add up in each parameter's `grad`. What the
host has to read of a unit stays on the device until its end and is fetched in one copy: each copy waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from sdpo_mlx.backends.loss_head import GradientPass, LearnBatch, Rows, RowStatistics, TeacherSet, by_member
from sdpo_mlx.backends.packing import Unit, tree_of
from sdpo_mlx.backends.torch.adapter import active
from sdpo_mlx.backends.torch.kv_cache import prefill
from sdpo_mlx.backends.torch.losses import row_loss
from sdpo_mlx.backends.torch.model import Model
from sdpo_mlx.types import FloatArray, IntArray


class TorchGradientPass(GradientPass):
    """See `GradientPass`; `parameters` hold the student."""

    def __init__(self, batch: LearnBatch, model: Model, parameters: Mapping[str, nn.Parameter]) -> None:
        # A block that runs again in the backward pass cannot continue from another's cache.
        super().__init__(batch, model.chunk, share=model.shares and (model.tree is not None or not model.recompute))
        self.model, self.parameters, self.finite = model, parameters, True
        self.dropout = [each for name, each in model.whole.named_modules() if _drops(name, each)]
        for parameter in parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.grads = {name: each.grad for name, each in parameters.items()}

    def add(self, unit: Unit, seed: int) -> tuple[float, list[RowStatistics], bool]:
        """See `GradientPass.add`; the sum is checked, so that only the first unit that spoils it is named."""
        with _masks(self.dropout, seed):
            states_RD = hidden_states(self.model, unit)
        self.chunk = self.model.chunk  # of the memory that the activations leave free
        cotangent_RD, losses, figures = torch.zeros_like(states_RD), list[Tensor](), list[RowStatistics]()
        for part, teacher_RV, rows in self.chunks(unit, states_RD.detach()):
            entering = states_RD[part].detach().requires_grad_()
            loss, figure = self._loss(entering, teacher_RV, rows)
            loss.backward()
            assert entering.grad is not None
            cotangent_RD[part] = entering.grad
            losses.append(loss.detach())
            figures.append(figure)
        with _masks(self.dropout, seed):  # blocks that run again draw the same masks again
            states_RD.backward(cotangent_RD)
        self.grads = {name: each.grad for name, each in self.parameters.items()}
        # One number that is finite only if all gradients are.
        norm = torch.nn.utils.get_total_norm(self.grads.values())
        loss_C, columns, (length,) = _fetched(torch.stack(losses), figures, norm[None])
        before, self.finite = self.finite, self.finite and bool(np.isfinite(length))
        return sum(loss_C.tolist()), by_member([columns], unit), self.finite or not before

    @torch.no_grad()
    def teacher_logits(self, hidden: Sequence[Tensor]) -> Tensor:
        """See `GradientPass.teacher_logits`."""
        return mixed_logits(self.model, self.parameters, hidden, self.batch.teacher_sets)

    @torch.no_grad()
    def statistics(self, hidden_RD: Tensor, teacher_RV: Tensor, rows: Rows) -> RowStatistics:
        """See `GradientPass.statistics`."""
        return self._loss(hidden_RD, teacher_RV, rows)[1]

    def concatenate(self, arrays: list[Tensor]) -> Tensor:
        """See `GradientPass.concatenate`."""
        return torch.cat(arrays)

    def on_device(self, rows: Rows) -> Rows:
        """See `GradientPass.on_device`."""
        device = self.model.device
        arrays = replace(rows, **{name: torch.from_numpy(array).to(device) for name, array in vars(rows).items()})
        return replace(arrays, ids_R=arrays.ids_R.long())  # `gather` takes int64 alone

    def _loss(self, hidden_RD: Tensor, teacher_RV: Tensor | None, rows: Rows) -> tuple[Tensor, RowStatistics]:
        logits = self.model.logits(hidden_RD)
        return row_loss(logits, teacher_RV, rows, self.batch.objective, self.batch.temperature)


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
    shares = any(not node.rows for node in unit.nodes)
    if shares and (model.tree == "flex" or (model.tree and torch.is_grad_enabled())):
        tree = tree_of(unit)
        return model.tree_hidden(tree)[ids_on(model, tree.take_R)]
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


def _fetched(
    losses_C: Tensor, figures: Sequence[RowStatistics], norm_1: Tensor
) -> tuple[FloatArray, RowStatistics, FloatArray]:
    """Losses of the chunks, statistics of all their rows, and the norm, brought to the host in one copy."""
    columns = [torch.cat(column) for column in zip(*figures, strict=True)]
    parts = [losses_C, *columns, norm_1]
    flat = torch.cat([part.float() for part in parts]).cpu().numpy()
    losses, *rest, norm = np.split(flat, np.cumsum([part.numel() for part in parts])[:-1])
    return losses, RowStatistics(*rest), norm


def _drops(name: str, module: nn.Module) -> bool:
    """Whether a module is a dropout of the adapter that drops anything; peft puts an identity where it is 0."""
    return "lora_dropout" in name and isinstance(module, nn.Dropout) and module.p > 0


@contextmanager
def _masks(layers: Sequence[nn.Module], seed: int) -> Iterator[None]:
    """Inside, these dropouts are on, with masks that follow from the seed alone."""
    if layers:
        torch.manual_seed(seed)
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()
