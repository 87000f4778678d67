"""The policy on PyTorch: one model, a student's and a teacher's adapter, AdamW (backends/base.py has the contract)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdpo_mlx.backends.base import MICRO_BATCH_TOKENS, Arrays, PolicyInfo, SamplingParams, Scores, Update, no_update
from sdpo_mlx.backends.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from sdpo_mlx.backends.distributed.sharding import pooled, shares
from sdpo_mlx.backends.statistics import step_figures, unfinished
from sdpo_mlx.backends.torch import adapter, generation
from sdpo_mlx.backends.torch.gradient import Gradient, gradient, hidden_states
from sdpo_mlx.backends.torch.loading import load
from sdpo_mlx.backends.torch.loss_head import Hidden, LearnBatch, TeacherSet, chunks, mixed_logits
from sdpo_mlx.backends.torch.losses import RowStatistics, at, log_softmax
from sdpo_mlx.backends.torch.memory import memory_figures
from sdpo_mlx.config import ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.types import DistillSample, Generation, IntArray, Role

Interrupted = Callable[[], bool]
TOKENS_ON_CPU = 512  # of one pass; more is hardly faster there
SMALLEST_BUDGET = 64  # tokens of one pass below which running out of memory is the end


class TorchPolicy:
    """A model with its student adapter, teacher adapter and optimizer."""

    def __init__(self, path: Path, model: ModelConfig, teacher: TeacherConfig, train: TrainConfig) -> None:
        loaded, self.config = load(path, model)
        self.model = replace(loaded, recompute=bool(train.grad_checkpoint))
        self.adapter, self.teacher_cfg, self.train_cfg = model.adapter, teacher, train
        self.parameters = adapter.attach(self.model.whole, model.adapter, derive(train.seed, "adapter"))
        self.model.whole.eval()
        self.teacher = adapter.copied(self.parameters)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), weight_decay=train.weight_decay, fused=True)
        self.world: ProcessGroup = SINGLE_PROCESS
        self.updates, self.name = 0, model.name
        # A card that runs out says so, and the parts are halved; a machine without one starts to swap.
        whole = TOKENS_ON_CPU if self.model.device.type == "cpu" else MICRO_BATCH_TOKENS
        self.budget = train.micro_batch_tokens or whole

    @property
    def info(self) -> PolicyInfo:
        """What this policy is and what it may promise."""
        device = self.model.device.type
        return PolicyInfo(
            name=self.name,
            backend="torch",
            device=device,
            dtype=str(self.model.whole.dtype).removeprefix("torch."),
            vocab_size=self.model.vocab_size,
            context_length=int(self.config.get("max_position_embeddings", 4_096)),
            trainable=sum(each.numel() for each in self.parameters.values()),
            parameters=self.model.whole.num_parameters(),
            bitwise=device == "cpu",
            details={
                "torch": torch.__version__,
                "architecture": str(self.config.get("model_type", "")),
                "micro_batch_tokens": str(self.budget),
                "card": torch.cuda.get_device_name() if device == "cuda" else "",
            },
        )

    def generate(
        self,
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Interrupted = lambda: False,
    ) -> Iterator[tuple[int, int, Generation]]:
        """See `Policy.generate`."""
        return generation.generate(self.model, prompts, sampling, seeds, interrupted=interrupted)

    def stream(self, prompt: IntArray, sampling: SamplingParams, seed: int) -> Iterator[int]:
        """See `Policy.stream`."""
        return generation.stream(self.model, prompt, sampling, seed)

    @torch.no_grad()
    def score(
        self, role: Role, sequences: Sequence[IntArray], spans: Sequence[tuple[int, int]], top_k: int = 0
    ) -> list[Scores]:
        """See `Policy.score`."""
        pairs = [(ids[:start], ids[start:stop]) for ids, (start, stop) in zip(sequences, spans, strict=True)]
        sets = self._teacher_sets() if role == "teacher" else [TeacherSet(self._student(), 1.0)]
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
        """See `Policy.learn`. Where a card runs out of memory, the same step is taken in smaller parts."""

        def checkpoint() -> None:
            if interrupted():
                raise KeyboardInterrupt

        # Not `> 0`: a weight that is NaN must stop the step, not drop out of it.
        counted = [s for s in samples if s.ids_T.size and not (s.distil_weight <= 0 and s.policy_weight <= 0)]
        if not counted:
            return no_update("no_signal")
        budget = self.budget
        lesson, own, teacher_seconds = self.world.together(
            lambda: self._fitting(lambda: self._gradient(counted, objective, temperature, checkpoint))
        )
        update = self._apply(self._pooled(own, counted), lesson, learning_rate, teacher_seconds)
        word = f"the memory was short: the step was taken in parts of {self.budget} tokens, as all from now on"
        short = (word,) if self.budget < budget else ()
        given = {id(sample): array for sample, array in zip(counted, update.divergence_T, strict=True)}
        return replace(
            update, divergence_T=tuple(given.get(id(s), np.zeros(0, np.float32)) for s in samples), warnings=short
        )

    def update_teacher(self, teacher: TeacherConfig) -> None:
        """See `Policy.update_teacher`; a frozen teacher and a trust region keep the initial weights."""
        rate = {"ema": teacher.update_rate, "live": 1.0}.get(teacher.kind, 0.0)
        self.teacher = adapter.moved(self.teacher, self.parameters, rate)

    def state(self) -> Mapping[str, Arrays]:
        """See `Policy.state`; the names and shapes are the same on every backend."""
        return {
            "student": adapter.to_numpy(self.parameters),
            "teacher": adapter.to_numpy(self.teacher),
            "optimizer": {
                "updates": np.array(self.updates, dtype=np.int64),
                "step": np.array(self.updates, dtype=np.uint64),
                "learning_rate": np.array(self.optimizer.param_groups[0]["lr"], dtype=np.float32),
                **adapter.to_numpy(self._moments()),
            },
        }

    def load_state(self, state: Mapping[str, Arrays]) -> None:
        """Restore what `state` gave, here or on another backend."""
        # All is checked before anything is put in place: half a state must not be trained on.
        student = adapter.from_numpy(state["student"], self.parameters, "student")
        teacher = adapter.from_numpy(state["teacher"], self.parameters, "teacher")
        plain = {name: array for name, array in state["optimizer"].items() if "|" in name}
        moments = adapter.from_numpy(plain, self._moments(), "optimizer")
        self._put(student)
        self.teacher, self.updates = teacher, int(state["optimizer"]["updates"])
        for name, parameter in self.parameters.items():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.updates), device=parameter.device),
                "exp_avg": moments[f"{name}|m"],
                "exp_avg_sq": moments[f"{name}|v"],
            }

    def load_student(self, arrays: Arrays) -> None:
        """Put an adapter's arrays into the student alone; raises ConfigError where they do not fit."""
        self._put(adapter.from_numpy(arrays, self.parameters, "adapter"))

    def adapter_config(self) -> dict[str, Any]:
        """What `adapter_config.json` beside the student's arrays must say for mlx-lm."""
        return adapter.adapter_config(self.model.whole, self.adapter)

    def memory(self) -> dict[str, int]:
        """See `Policy.memory`."""
        return memory_figures(self.model.device)

    def _student(self) -> adapter.Weights:
        return {name: each.data for name, each in self.parameters.items()}

    def _put(self, weights: adapter.Weights) -> None:
        for name, parameter in self.parameters.items():
            parameter.data = weights[name]

    def _moments(self) -> adapter.Weights:
        found: adapter.Weights = {}
        for name, parameter in self.parameters.items():
            own = self.optimizer.state.get(parameter, {})
            found[f"{name}|m"] = own.get("exp_avg", torch.zeros_like(parameter.data))
            found[f"{name}|v"] = own.get("exp_avg_sq", torch.zeros_like(parameter.data))
        return found

    def _teacher_sets(self) -> list[TeacherSet]:
        if self.teacher_cfg.kind != "trust_region":
            return [TeacherSet(self.teacher, 1.0)]
        rate = self.teacher_cfg.update_rate
        return [TeacherSet(self.teacher, 1.0 - rate), TeacherSet(self._student(), rate)]

    def _hidden(
        self,
        sets: Sequence[TeacherSet],
        pairs: Sequence[tuple[IntArray, IntArray]],
        checkpoint: Callable[[], None] = lambda: None,
    ) -> list[Hidden]:
        columns = [hidden_states(self.model, self.parameters, s.weights, pairs, self.budget, checkpoint) for s in sets]
        return list(zip(*columns, strict=True))

    def _gradient(
        self,
        counted: Sequence[DistillSample],
        objective: ObjectiveConfig,
        temperature: float,
        checkpoint: Callable[[], None],
    ) -> tuple[LearnBatch, Gradient, float]:
        """This rank's part of the step; the gradient lies in the parameters."""
        begun, own = time.perf_counter(), shares(counted, self.world.size)[self.world.rank]
        sets, teacher = self._teacher_sets(), self._teacher_hidden(counted, own, checkpoint)
        seconds = time.perf_counter() - begun
        seed = derive(self.train_cfg.seed, "dropout", self.updates)
        lesson = LearnBatch(counted, teacher, sets, objective, temperature, seed, own)
        return lesson, gradient(self.model, self.parameters, lesson, self.budget, checkpoint), seconds

    def _fitting(self, step: Callable[[], tuple[LearnBatch, Gradient, float]]) -> tuple[LearnBatch, Gradient, float]:
        """The same step, in parts of half the size whenever memory runs out; raises ConfigError at the smallest."""
        while True:
            try:
                return step()
            except torch.OutOfMemoryError as error:
                if self.budget <= SMALLEST_BUDGET:
                    fix = "take a smaller model, or lower rollout.max_tokens and teacher.max_context_tokens"
                    raise ConfigError("the memory does not hold one answer's step", where="model", fix=fix) from error
            self.budget //= 2
            torch.cuda.empty_cache()

    def _pooled(self, own: Gradient, samples: Sequence[DistillSample]) -> Gradient:
        """The figures of all ranks, and in the parameters the gradient of all."""
        parts = own.loss, own.statistics, own.suspects
        pooled_parts = pooled(self.world, parts, samples, RowStatistics, RowStatistics._fields)
        summed = self.world.total({name: each.grad for name, each in self.parameters.items()})
        for name, parameter in self.parameters.items():
            parameter.grad = summed[name]
        return Gradient(*pooled_parts)

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
            logits = mixed_logits(self.model, self.parameters, [states[part] for states in parts], sets)
            logp_TV = log_softmax(logits, 1.0)
            own = torch.from_numpy(response[part].astype(np.int64)).to(logp_TV.device)
            logps.append(at(logp_TV, own).cpu().numpy())
            if top_k:
                found = logp_TV.topk(top_k, dim=-1)
                ids.append(found.indices.int().cpu().numpy())
                tops.append(found.values.cpu().numpy())
        logps_T = np.concatenate(logps) if logps else np.zeros(0, np.float32)
        return Scores(logps_T, np.concatenate(ids) if ids else None, np.concatenate(tops) if tops else None)

    def _apply(self, found: Gradient, lesson: LearnBatch, learning_rate: float, teacher_seconds: float) -> Update:
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.train_cfg.clip_norm)
        bad = unfinished(lesson.samples, found.statistics, found.suspects)
        finite = bool(np.isfinite(found.loss) and torch.isfinite(norm)) and not bad
        applied = finite and learning_rate > 0
        if applied:
            self.optimizer.param_groups[0]["lr"] = learning_rate
            self.optimizer.step()
            self.updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        return Update(
            applied=applied,
            reason="" if applied else "learning_rate" if finite else "non_finite",
            loss=found.loss,
            grad_norm=float(norm),
            teacher_seconds=teacher_seconds,
            non_finite=bad,
            **step_figures(lesson.samples, found.statistics, lesson.objective.importance_clip),
        )


def open_policy(path: Path, model: ModelConfig, teacher: TeacherConfig, train: TrainConfig) -> TorchPolicy:
    """Load the base at `path` and attach fresh student and teacher adapters (equal at the start)."""
    return TorchPolicy(path, model, teacher, train)
