"""The policy on MLX: one model, a student's and a teacher's adapter, AdamW (contract: `backends/base.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

from sdpo_mlx.backends.base import MICRO_BATCH_TOKENS, QUANTIZED_ROWS, Arrays, PolicyInfo
from sdpo_mlx.backends.command_size import EvaluationSizes, evaluation_limit
from sdpo_mlx.backends.learner import Learner, TopK
from sdpo_mlx.backends.loss_head import Hidden, LearnBatch, TeacherSet, Weights
from sdpo_mlx.backends.mlx import BLAS, adapter, generation
from sdpo_mlx.backends.mlx.device import PeakTracker, chip_name
from sdpo_mlx.backends.mlx.differentiable import differentiable_recurrence
from sdpo_mlx.backends.mlx.gated_delta import efficient_recurrence
from sdpo_mlx.backends.mlx.gradient import MLXGradientPass, mixed_logits
from sdpo_mlx.backends.mlx.limits import device_limits
from sdpo_mlx.backends.mlx.loading import device_name, load
from sdpo_mlx.backends.mlx.losses import at, log_softmax
from sdpo_mlx.backends.mlx.model import Model
from sdpo_mlx.backends.packing import Unit
from sdpo_mlx.config import MemoryConfig, ModelConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.models.dimensions import ModelDims
from sdpo_mlx.types import IntArray


class MLXPolicy(Learner):
    """A model with its student adapter, teacher adapter and optimizer."""

    model: Model
    generation = generation

    def __init__(
        self,
        path: Path,
        model: ModelConfig,
        teacher: TeacherConfig,
        train: TrainConfig,
        memory: MemoryConfig | None = None,
    ) -> None:
        super().__init__(model, teacher, train)
        self.path, self.memory_cfg = path, memory or MemoryConfig()
        with self.limits():
            loaded, self.config = load(path, model)
        self.model = replace(loaded, sizes=self._sizes(loaded))
        self.adapter = model.adapter.model_copy(update={"keys": adapter.layer_keys(self.model.whole, model.adapter)})
        self.student = adapter.attach(self.model.whole, self.adapter, derive(train.seed, "adapter"))
        self.model.whole.eval()
        self.teacher, self.layers = dict(self.student), len(self.model.whole.layers)
        # MLX's default has no bias correction; without it the first updates are three times as large as torch's.
        self.optimizer = optim.AdamW(train.learning_rate, weight_decay=train.weight_decay, bias_correction=True)
        self.optimizer.init(self.student)
        self.peaks = PeakTracker()
        self.rows = self.model.sizes.prefill  # each decodes one token at once
        self.budget = min(train.micro_batch_tokens or MICRO_BATCH_TOKENS, self.model.sizes.learning)

    @cached_property
    def info(self) -> PolicyInfo:
        """See `Policy.info`."""
        device = device_name()
        leaves = tree_flatten(self.model.whole.parameters())
        return PolicyInfo(
            name=self.name,
            backend="mlx",
            device=device,
            dtype=str(self.model.dtype).removeprefix("mlx.core."),
            vocab_size=self.model.vocab_size,
            context_length=int(self.config.get("max_position_embeddings", 4_096)),
            trainable=sum(array.size for array in self.student.values()),
            parameters=sum(array.size for _, array in leaves),
            bitwise=device == "cpu",
            aborts=device == "gpu",
            together=QUANTIZED_ROWS if device == "gpu" and "quantization" in self.config else 1,
            details={
                "blas": BLAS,
                "mlx": version("mlx"),
                "architecture": str(self.config.get("model_type", "")),
                "learning": f"{self.model.trunk.way}, {'shared' if self.model.shares else 'separate'} prompts",
            },
        )

    def state(self) -> Mapping[str, Arrays]:
        """See `Policy.state`."""
        return {
            "student": adapter.to_numpy(self.student),
            "teacher": adapter.to_numpy(self.teacher),
            "optimizer": self._optimizer_arrays(),
        }

    def load_state(self, state: Mapping[str, Arrays]) -> None:
        """See `Policy.load_state`."""
        # Everything is checked before anything is replaced: half a state must not be trained on.
        student, teacher = (adapter.from_numpy(state[part], self.student, part) for part in ("student", "teacher"))
        optimizer = adapter.from_numpy(state["optimizer"], self._optimizer_arrays(), "optimizer")
        self.updates = int(state["optimizer"]["updates"])
        del optimizer["updates"]
        restored: dict[str, Any] = {}
        for key, array in optimizer.items():
            name, _, moment = key.partition("|")
            if moment:
                restored.setdefault(name, {})[moment] = array
            else:
                restored[name] = array
        self.student, self.teacher, self.optimizer.state = student, teacher, restored
        adapter.assign(self.model.whole, student)

    def load_student(self, arrays: Arrays) -> None:
        """See `Policy.load_student`."""
        self.student = adapter.from_numpy(arrays, self.student, "adapter")
        adapter.assign(self.model.whole, self.student)

    def memory(self) -> dict[str, int]:
        """See `Policy.memory`."""
        phases, limit = self.peaks.read(), int(mx.device_info().get("memory_size", 0))
        return {"current": mx.get_active_memory(), "peak": max(phases.values()), "limit": limit, **phases}

    def check_gradient(self, *, slope: bool = True) -> tuple[str, ...]:
        """See `Policy.check_gradient`."""
        from sdpo_mlx.backends.mlx.self_test import core

        with self.limits():
            warnings = core.check(self)
        return (*warnings, *super().check_gradient(slope=slope))

    # The array functions of `Learner`

    def begin_phase(self, phase: str) -> None:
        """See `Learner.begin_phase`."""
        self.peaks.begin(phase)

    def active(self, weights: Weights) -> AbstractContextManager[None]:
        """See `Learner.active`."""
        return adapter.active(self.model.whole, weights, self.student)

    def forward(self, unit: Unit) -> list[mx.array]:
        """See `Learner.forward`."""
        parts = list(mx.split(self.model.trunk.forward(unit), np.cumsum(unit.counts)[:-1].tolist()))
        mx.eval(parts)
        return parts

    def log_probs(
        self, hidden: Hidden, sets: Sequence[TeacherSet], ids_T: IntArray, top_k: int, temperature: float
    ) -> TopK:
        """See `Learner.log_probs`."""
        logp_TV = log_softmax(mixed_logits(self.model, self.student, hidden, sets), temperature)
        ids_TK = mx.argsort(-logp_TV, axis=-1)[:, :top_k] if top_k else mx.zeros((ids_T.size, 0), mx.int32)
        tops_TK = mx.take_along_axis(logp_TV, ids_TK, axis=-1)
        return np.array(at(logp_TV, mx.array(ids_T))), np.array(ids_TK).astype(np.int32), np.array(tops_TK)

    def gradient_pass(self, batch: LearnBatch) -> MLXGradientPass:
        """See `Learner.gradient_pass`."""
        return MLXGradientPass(batch, self.model, self.student, keep=self.train_cfg.grad_checkpoint is False)

    def clip_gradient(self, grads: Weights) -> tuple[Weights, float]:
        """See `Learner.clip_gradient`."""
        clipped, norm = optim.clip_grad_norm(grads, self.train_cfg.clip_norm)
        return clipped, float(norm.item())

    def optimizer_step(self, grads: Weights, learning_rate: float) -> None:
        """See `Learner.optimizer_step`."""
        self.optimizer.learning_rate = learning_rate
        self.student = self.optimizer.apply_gradients(grads, self.student)
        mx.eval(self.student, self.optimizer.state)

    def moved_teacher(self, rate: float) -> Weights:
        """See `Learner.moved_teacher`."""
        if rate in (0.0, 1.0):
            return dict(self.student if rate else self.teacher)
        result = {name: array + rate * (self.student[name] - array) for name, array in self.teacher.items()}
        mx.eval(result)
        return result

    def limits(self) -> AbstractContextManager[None]:
        """See `Learner.limits`."""
        return device_limits(self.memory_cfg)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Recurrences with a gradient, and the student in the model afterwards whatever happened."""
        with efficient_recurrence(self.model.whole), differentiable_recurrence(self.model.whole):
            try:
                yield
            finally:
                adapter.assign(self.model.whole, self.student)

    def _sizes(self, model: Model) -> EvaluationSizes:
        """How many tokens one evaluation covers on this device."""
        limit, by_block = evaluation_limit(self.memory_cfg.evaluation_gflop, chip_name()), model.trunk.way == "by block"
        try:
            return EvaluationSizes.of(ModelDims.of(self.config, self.name), self.adapter, limit, by_block=by_block)
        except ConfigError:  # dimensions under other names: all weights, eight of 4 bits in a uint32
            leaves = (array for _, array in tree_flatten(model.whole.parameters()))
            whole = sum(array.size * (8 if array.dtype == mx.uint32 else 1) for array in leaves)
            return EvaluationSizes(limit, whole / len(model.whole.layers), whole, by_block=by_block)

    def _optimizer_arrays(self) -> dict[str, Any]:
        arrays = {"updates": np.array(self.updates, dtype=np.int64)}
        for name, value in self.optimizer.state.items():
            moments = value.items() if isinstance(value, dict) else [("", value)]
            arrays.update({f"{name}|{moment}" if moment else name: np.array(array) for moment, array in moments})
        return arrays
