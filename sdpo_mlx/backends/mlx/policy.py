"""The policy on MLX: one model, a student's and a teacher's adapter, AdamW (backends/base.py has the contract)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

from sdpo_mlx.backends.base import MICRO_BATCH_TOKENS, Arrays, PolicyInfo, SamplingParams, Scores, Update, no_update
from sdpo_mlx.backends.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from sdpo_mlx.backends.distributed.sharding import pooled, shares
from sdpo_mlx.backends.mlx import BLAS, adapter, generation
from sdpo_mlx.backends.mlx.gradient import Gradient, gradient, hidden_states
from sdpo_mlx.backends.mlx.loading import device_name, load
from sdpo_mlx.backends.mlx.loss_head import Hidden, LearnBatch, TeacherSet, chunks
from sdpo_mlx.backends.mlx.losses import RowStatistics, at, log_softmax
from sdpo_mlx.backends.mlx.memory import Peaks, mannered
from sdpo_mlx.backends.statistics import step_figures, unfinished
from sdpo_mlx.config import ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.types import DistillSample, Generation, IntArray, Role

Interrupted = Callable[[], bool]


class MLXPolicy:
    """A model with its student adapter, teacher adapter and optimizer."""

    def __init__(self, path: Path, model: ModelConfig, teacher: TeacherConfig, train: TrainConfig) -> None:
        self.model, self.config = load(path, model)
        self.adapter, self.teacher_cfg, self.train_cfg = model.adapter, teacher, train
        self.student = adapter.attach(self.model.whole, model.adapter, derive(train.seed, "adapter"))
        self.model.whole.eval()
        self.teacher = dict(self.student)
        self.updates = 0
        self.world: ProcessGroup = SINGLE_PROCESS
        # torch's AdamW corrects its bias; without it the first updates are three times too large.
        self.optimizer = optim.AdamW(train.learning_rate, weight_decay=train.weight_decay, bias_correction=True)
        self.optimizer.init(self.student)
        self.name, self.peaks = model.name, Peaks()

    @property
    def info(self) -> PolicyInfo:
        """What this policy is and what it may promise."""
        device = device_name()
        leaves = tree_flatten(self.model.whole.parameters())
        return PolicyInfo(
            name=self.name,
            backend="mlx",
            device=device,
            dtype=str(self.model.trunk.embed(mx.zeros((1, 1), dtype=mx.int32)).dtype).removeprefix("mlx.core."),
            vocab_size=self.model.vocab_size,
            context_length=int(self.config.get("max_position_embeddings", 4_096)),
            trainable=sum(array.size for array in self.student.values()),
            parameters=sum(array.size for _, array in leaves),
            bitwise=device == "cpu",
            details={"blas": BLAS, "mlx": version("mlx"), "architecture": str(self.config.get("model_type", ""))},
        )

    def generate(
        self,
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Interrupted = lambda: False,
    ) -> Iterator[tuple[int, int, Generation]]:
        """See `Policy.generate`."""
        self.peaks.begin("generate")
        return generation.generate(self.model.whole, prompts, sampling, seeds, interrupted=interrupted)

    def stream(self, prompt: IntArray, sampling: SamplingParams, seed: int) -> Iterator[int]:
        """See `Policy.stream`."""
        return generation.stream(self.model.whole, prompt, sampling, seed)

    def score(
        self, role: Role, sequences: Sequence[IntArray], spans: Sequence[tuple[int, int]], top_k: int = 0
    ) -> list[Scores]:
        """See `Policy.score`."""
        pairs = [(ids[:start], ids[start:stop]) for ids, (start, stop) in zip(sequences, spans, strict=True)]
        sets = self._teacher_sets() if role == "teacher" else [TeacherSet(self.student, 1.0)]
        return [
            self._scores(parts, response, sets, top_k)
            for parts, (_, response) in zip(self._hidden(sets, pairs), pairs, strict=True)
        ]

    def learn(
        self,
        samples: Sequence[DistillSample],
        objective: ObjectiveConfig,
        learning_rate: float,
        *,
        temperature: float = 1.0,
        interrupted: Interrupted = lambda: False,
    ) -> Update:
        """See `Policy.learn`."""

        def checkpoint() -> None:
            if interrupted():
                raise KeyboardInterrupt

        # Not `> 0`: a weight that is NaN must stop the step, not drop out of it.
        counted = [s for s in samples if s.ids_T.size and not (s.distil_weight <= 0 and s.policy_weight <= 0)]
        if not counted:
            return no_update("no_signal")
        with mannered():
            lesson, own, teacher_seconds = self.world.together(
                lambda: self._gradient(counted, objective, temperature, checkpoint)
            )
            update = self._apply(self._pooled(own, counted), lesson, learning_rate, teacher_seconds)
        given = {id(sample): array for sample, array in zip(counted, update.divergence_T, strict=True)}
        return replace(update, divergence_T=tuple(given.get(id(s), np.zeros(0, np.float32)) for s in samples))

    def update_teacher(self, teacher: TeacherConfig) -> None:
        """See `Policy.update_teacher`; a frozen teacher and a trust region keep the initial weights."""
        rate = {"ema": teacher.update_rate, "live": 1.0}.get(teacher.kind, 0.0)
        self.teacher = adapter.moved(self.teacher, self.student, rate)

    def state(self) -> Mapping[str, Arrays]:
        """See `Policy.state`."""
        return {
            "student": adapter.to_numpy(self.student),
            "teacher": adapter.to_numpy(self.teacher),
            "optimizer": self._optimizer_arrays(),
        }

    def load_state(self, state: Mapping[str, Arrays]) -> None:
        """See `Policy.load_state`."""
        # All is checked before anything is put in place: half a state must not be trained on.
        student = adapter.from_numpy(state["student"], self.student, "student")
        teacher = adapter.from_numpy(state["teacher"], self.student, "teacher")
        optimizer = adapter.from_numpy(state["optimizer"], self._optimizer_arrays(), "optimizer")
        del optimizer["updates"]
        self.updates = int(state["optimizer"]["updates"])
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
        """Put an adapter's arrays into the student alone; raises ConfigError where they do not fit."""
        self.student = adapter.from_numpy(arrays, self.student, "adapter")
        adapter.assign(self.model.whole, self.student)

    def adapter_config(self) -> dict[str, Any]:
        """What `adapter_config.json` beside the student's arrays must say for mlx-lm."""
        return adapter.adapter_config(self.model.whole, self.adapter)

    def memory(self) -> dict[str, int]:
        """See `Policy.memory`."""
        phases, limit = self.peaks.read(), int(mx.device_info().get("memory_size", 0))
        return {"current": mx.get_active_memory(), "peak": max(phases.values()), "limit": limit, **phases}

    @property
    def _budget(self) -> int:
        return self.train_cfg.micro_batch_tokens or MICRO_BATCH_TOKENS

    def _optimizer_arrays(self) -> dict[str, Any]:
        arrays = {"updates": np.array(self.updates, dtype=np.int64)}
        for name, value in self.optimizer.state.items():
            moments = value.items() if isinstance(value, dict) else [("", value)]
            arrays.update({f"{name}|{moment}" if moment else name: np.array(array) for moment, array in moments})
        return arrays

    def _teacher_sets(self) -> list[TeacherSet]:
        if self.teacher_cfg.kind != "trust_region":
            return [TeacherSet(self.teacher, 1.0)]
        rate = self.teacher_cfg.update_rate
        return [TeacherSet(self.teacher, 1.0 - rate), TeacherSet(self.student, rate)]

    def _hidden(
        self,
        sets: Sequence[TeacherSet],
        pairs: Sequence[tuple[IntArray, IntArray]],
        checkpoint: Callable[[], None] = lambda: None,
    ) -> list[Hidden]:
        budget = self._budget
        columns = [hidden_states(self.model, s.weights, self.student, pairs, budget, checkpoint) for s in sets]
        return list(zip(*columns, strict=True))

    def _gradient(
        self,
        counted: Sequence[DistillSample],
        objective: ObjectiveConfig,
        temperature: float,
        checkpoint: Callable[[], None],
    ) -> tuple[LearnBatch, Gradient, float]:
        """This rank's part of the step."""
        self.peaks.begin("teacher")
        begun, own = time.perf_counter(), shares(counted, self.world.size)[self.world.rank]
        sets, teacher = self._teacher_sets(), self._teacher_hidden(counted, own, checkpoint)
        seconds = time.perf_counter() - begun
        self.peaks.begin("learn")
        seed = derive(self.train_cfg.seed, "dropout", self.updates)
        lesson = LearnBatch(counted, teacher, sets, objective, temperature, seed, own)
        budget, keep = self._budget, self.train_cfg.grad_checkpoint is False
        return lesson, gradient(self.model, self.student, lesson, budget, checkpoint, keep=keep), seconds

    def _pooled(self, own: Gradient, samples: Sequence[DistillSample]) -> Gradient:
        """The gradient and the figures of all ranks."""
        parts = own.loss, own.statistics, own.suspects
        loss, statistics, suspects = pooled(self.world, parts, samples, RowStatistics, RowStatistics._fields)
        return Gradient(loss, self.world.total(own.grads), statistics, suspects)

    def _teacher_hidden(
        self, samples: Sequence[DistillSample], own: Sequence[int], checkpoint: Callable[[], None]
    ) -> list[Hidden | None]:
        chosen = [i for i in own if samples[i].distil_weight > 0]
        pairs = [(s.teacher_ids[: s.teacher_span[0]], s.ids_T) for s in (samples[i] for i in chosen)]
        result: list[Hidden | None] = [None] * len(samples)
        for i, states in zip(chosen, self._hidden(self._teacher_sets(), pairs, checkpoint), strict=True):
            result[i] = states
        return result

    def _scores(self, parts: Hidden, response: IntArray, sets: Sequence[TeacherSet], top_k: int) -> Scores:
        logps, ids, tops = [], [], []
        for part in chunks(response.size, self.model.chunk):
            logp_TV = log_softmax(self._logits([states[part] for states in parts], sets), 1.0)
            logps.append(np.array(at(logp_TV, mx.array(response[part]))))
            if top_k:
                ids_TK = mx.argsort(-logp_TV, axis=-1)[:, :top_k]
                ids.append(np.array(ids_TK).astype(np.int32))
                tops.append(np.array(mx.take_along_axis(logp_TV, ids_TK, axis=-1)))
        logps_T = np.concatenate(logps) if logps else np.zeros(0, np.float32)
        return Scores(logps_T, np.concatenate(ids) if ids else None, np.concatenate(tops) if tops else None)

    def _logits(self, hidden: Sequence[mx.array], sets: Sequence[TeacherSet]) -> mx.array:
        logits: Any = 0.0
        for states, source in zip(hidden, sets, strict=True):
            with adapter.active(self.model.whole, source.weights, self.student):
                logits = logits + source.share * self.model.trunk.head(states).astype(mx.float32)
        return logits

    def _apply(self, found: Gradient, lesson: LearnBatch, learning_rate: float, teacher_seconds: float) -> Update:
        clipped, norm = optim.clip_grad_norm(found.grads, self.train_cfg.clip_norm)
        grad_norm = float(norm.item())
        bad = unfinished(lesson.samples, found.statistics, found.suspects)
        finite = bool(np.isfinite(found.loss) and np.isfinite(grad_norm)) and not bad
        applied = finite and learning_rate > 0
        if applied:
            self._step(clipped, learning_rate)
        return Update(
            applied=applied,
            reason="" if applied else "learning_rate" if finite else "non_finite",
            loss=found.loss,
            grad_norm=grad_norm,
            teacher_seconds=teacher_seconds,
            non_finite=bad,
            **step_figures(lesson.samples, found.statistics, lesson.objective.importance_clip),
        )

    def _step(self, grads: adapter.Weights, learning_rate: float) -> None:
        self.optimizer.learning_rate = learning_rate
        student = self.optimizer.apply_gradients(grads, self.student)
        mx.eval(student, self.optimizer.state)
        self.student, self.updates = student, self.updates + 1
        adapter.assign(self.model.whole, student)


def open_policy(path: Path, model: ModelConfig, teacher: TeacherConfig, train: TrainConfig) -> MLXPolicy:
    """Load the base at `path` and attach fresh student and teacher adapters (equal at the start)."""
    return MLXPolicy(path, model, teacher, train)
