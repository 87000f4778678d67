"""Scoring and one optimizer step, the same on every backend.

`Learner` decides which samples count, what the teacher is, which sequences run together, how ranks share a step and
when a step is refused. A backend supplies array functions: a forward pass to hidden states, a `GradientPass`,
log-probs from hidden states, clipping, and the optimizer (`mlx/policy.py`, `torch/policy.py`).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from sdpo_mlx.backends import gradient_check
from sdpo_mlx.backends.base import Arrays, Policy, SamplingParams, Scores, Update, no_update
from sdpo_mlx.backends.command_size import UNBOUNDED
from sdpo_mlx.backends.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from sdpo_mlx.backends.distributed.sharding import cut, pooled
from sdpo_mlx.backends.loss_head import (
    Gradient,
    GradientPass,
    Hidden,
    LearnBatch,
    RowStatistics,
    TeacherSet,
    Weights,
    slices,
)
from sdpo_mlx.backends.packing import Unit, pack
from sdpo_mlx.config import AdapterConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.types import DistillSample, Generation, IntArray, Role

Interrupted = Callable[[], bool]
Rollout = tuple[int, int, Generation]  # prompt, rollout of the prompt, tokens
EMPTY = np.zeros(0, np.float32)
UNBATCHED = "rollouts of this model depend on their neighbours in a batch: they are decoded one by one, slowly"
TopK = tuple[Any, Any, Any]  # log-probs of given ids (T,), top-k ids and log-probs (T, K)


class SplitModel(Protocol):
    """The model as a body and a head: `chunk` are the response positions that the head sees at once.

    `shares` is whether prompts that begin alike may run once, `batched` whether rollouts are decoded side by side.
    """

    @property
    def chunk(self) -> int: ...
    @property
    def shares(self) -> bool: ...
    @property
    def batched(self) -> bool: ...


class Learner(Policy, ABC):
    """The backend-independent part of a policy (see `Policy` for the public methods).

    `group` are the ranks that share each step; every rank computes the gradient of its own samples under the
    normalisation of all, and takes the same optimizer step on the sum.
    """

    student: Weights
    teacher: Weights
    model: SplitModel
    generation: Any  # the backend's module with `generate` and `stream`
    layers: int  # transformer blocks
    budget: int  # tokens forwarded at once

    def __init__(self, model: ModelConfig, teacher: TeacherConfig, train: TrainConfig) -> None:
        self.name, self.adapter, self.teacher_cfg, self.train_cfg = model.name, model.adapter, teacher, train
        self.group: ProcessGroup = SINGLE_PROCESS
        self.rows = UNBOUNDED  # rollouts at once at most, groups included
        self.updates = 0
        self.shortages: dict[str, str] = {}  # what runs at once less than at the last update, and one line on it

    # What a backend supplies

    @abstractmethod
    def forward(self, unit: Unit) -> Sequence[Any]:
        """Hidden states (T, d) that predict each member's response, without a gradient, under the active weights."""

    @abstractmethod
    def active(self, weights: Weights) -> AbstractContextManager[None]:
        """Run a block with these weights in the model instead of the student's."""

    @abstractmethod
    def log_probs(
        self, hidden: Hidden, sets: Sequence[TeacherSet], ids_T: IntArray, top_k: int, temperature: float
    ) -> TopK:
        """Log-probs (numpy) of the mixed logits of hidden states, one array per set."""

    @abstractmethod
    def gradient_pass(self, batch: LearnBatch) -> GradientPass:
        """Begin the gradient of a batch."""

    @abstractmethod
    def clip_gradient(self, grads: Weights) -> tuple[Weights, float]:
        """Clip the gradient to `train.clip_norm`. Return it and its norm before."""

    @abstractmethod
    def optimizer_step(self, grads: Weights, learning_rate: float) -> None:
        """Take one optimizer step."""

    @abstractmethod
    def moved_teacher(self, rate: float) -> Weights:
        """(1 - rate) teacher + rate student, by name; rates 0 and 1 copy exactly."""

    @abstractmethod
    def learning(self) -> AbstractContextManager[None]:
        """Set what holds for the duration of a step, and clean up after it."""

    def limits(self) -> AbstractContextManager[None]:
        """Keep to the device's memory limits for the duration of a call, and restore those before."""
        return nullcontext()

    def begin_phase(self, phase: str) -> None:
        """Count memory for this phase from here on, if the backend can."""

    def most_rows(self, tokens: int) -> int:  # noqa: ARG002 - a backend may know what a token takes
        """Return how many rollouts of so many tokens, prompt included, run at once at most, groups included."""
        return self.rows

    # What they share

    def generate(
        self,
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Interrupted = lambda: False,
    ) -> Iterator[Rollout]:
        """See `Policy.generate`."""
        self.begin_phase("generate")
        rows = self.most_rows(max(map(len, prompts), default=0) + sampling.max_tokens)
        parts = [(at, first) for at, own in enumerate(seeds) for first in range(0, len(own), rows)]
        sampling = replace(sampling, concurrency=min(self.pass_sizes(sampling)["generate"], rows))
        split = (
            [prompts[at] for at, _ in parts],
            sampling,
            [seeds[at][first : first + rows] for at, first in parts],
        )
        with self.limits():
            for part, n, found in self.generation.generate(self.model, *split, interrupted):
                yield parts[part][0], parts[part][1] + n, found

    def stream(self, prompt: IntArray, sampling: SamplingParams, seed: int) -> Iterator[int]:
        """See `Policy.stream`."""
        with self.limits():
            yield from self.generation.stream(self.model, prompt, sampling, seed)

    def score(
        self,
        role: Role,
        sequences: Sequence[IntArray],
        spans: Sequence[tuple[int, int]],
        top_k: int = 0,
        temperature: float = 1.0,
    ) -> list[Scores]:
        """See `Policy.score`."""
        pairs = [(ids[:start], ids[start:stop]) for ids, (start, stop) in zip(sequences, spans, strict=True)]
        sets = self._teacher_sets() if role == "teacher" else [TeacherSet(self.student, 1.0)]
        with self.limits():
            return self._scores(sets, pairs, top_k, temperature)

    def _scores(
        self, sets: Sequence[TeacherSet], pairs: Sequence[tuple[IntArray, IntArray]], top_k: int, temperature: float
    ) -> list[Scores]:
        scores = []
        for states, (_, response) in zip(self.hidden(sets, pairs), pairs, strict=True):
            parts = [
                self.log_probs(tuple(each[part] for each in states), sets, response[part], top_k, temperature)
                for part in slices(response.size, self.model.chunk)
            ]
            columns: list[Any] = [np.concatenate(column) for column in zip(*parts, strict=True)]
            logps_T = columns[0] if parts else EMPTY
            scores.append(Scores(logps_T, *(columns[1:] if parts and top_k else (None, None))))
        return scores

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
        budget = self.budget
        with self.limits(), self.learning():
            with self.group.together():
                found = self.gradient(counted, objective, temperature, checkpoint)
            update = self._apply(pooled(self.group, found, counted), counted, objective, learning_rate)
        given = {id(sample): array for sample, array in zip(counted, update.divergence_T, strict=True)}
        short = f"out of memory: the step was computed in parts of {self.budget} tokens, as all steps from now on"
        shortages, self.shortages = self.shortages.values(), {}
        return replace(
            update,
            divergence_T=tuple(given.get(id(s), EMPTY) for s in samples),
            warnings=(*shortages, *((short,) if self.budget < budget else ())),
        )

    def gradient(
        self,
        samples: Sequence[DistillSample],
        objective: ObjectiveConfig,
        temperature: float,
        checkpoint: Callable[[], None],
    ) -> Gradient:
        """Return this rank's part of the step's gradient; the token budget of a unit changes the sum by rounding alone.

        `checkpoint` is called between units and may raise to give up; nothing has been changed by then.
        """
        self.begin_phase("teacher")
        begun = time.perf_counter()
        own = cut([s.student_ids.size + s.teacher_ids.size for s in samples], self.group.size)[self.group.rank]
        distilled, sets = [i for i in own if samples[i].distil_weight > 0], self._teacher_sets()
        pairs = [(s.teacher_ids[: s.teacher_span[0]], s.ids_T) for s in (samples[i] for i in distilled)]
        teacher = dict(zip(distilled, self.hidden(sets, pairs, checkpoint), strict=True))
        batch = LearnBatch(samples, [teacher.get(i) for i in range(len(samples))], sets, objective, temperature)
        seconds = time.perf_counter() - begun
        self.begin_phase("learn")
        run, seed = self.gradient_pass(batch), derive(self.train_cfg.seed, "dropout", self.updates)
        prompts, responses = [s.student_ids[: s.student_span[0]] for s in samples], [s.ids_T for s in samples]
        total, suspects, statistics = 0.0, list[int](), dict[int, RowStatistics]()
        for number, unit in enumerate(pack(prompts, responses, self.budget, own, share=run.share)):
            checkpoint()
            loss, figures, finite = run.add(unit, derive(seed, number))
            total += loss
            statistics.update(zip(unit.members, figures, strict=True))
            suspects.extend(() if finite else unit.members)
        return Gradient(total, run.grads, [statistics[i] for i in sorted(statistics)], tuple(suspects), seconds)

    def warnings(self) -> tuple[str, ...]:
        """See `Policy.warnings`."""
        return () if self.model.batched else (UNBATCHED,)

    def check_gradient(self, *, slope: bool = True) -> tuple[str, ...]:
        """See `Policy.check_gradient`."""
        if not slope:
            return ()
        with self.limits():
            return gradient_check.check(self)

    def pass_sizes(self, sampling: SamplingParams) -> dict[str, int]:
        """See `Policy.pass_sizes`."""
        return {"generate": min(sampling.concurrency, self.rows), "learn": self.budget}

    def limit_pass(self, phase: str, size: int) -> None:
        """See `Policy.limit_pass`."""
        if phase == "generate":
            self.rows = min(self.rows, size)
        else:
            self.budget = min(self.budget, size)

    def update_teacher(self, teacher: TeacherConfig) -> None:
        """See `Policy.update_teacher`; a frozen teacher and a trust region keep the initial weights."""
        self.teacher = self.moved_teacher({"ema": teacher.update_rate, "live": 1.0}.get(teacher.kind, 0.0))

    def adapter_config(self) -> dict[str, Any]:
        """See `Policy.adapter_config`."""
        layers, parameters = adapted_layers(self.adapter, self.layers), lora_parameters(self.adapter)
        return {"fine_tune_type": self.adapter.kind, "num_layers": layers, "lora_parameters": parameters}

    def _teacher_sets(self) -> list[TeacherSet]:
        if self.teacher_cfg.kind != "trust_region":
            return [TeacherSet(self.teacher, 1.0)]
        rate = self.teacher_cfg.update_rate
        return [TeacherSet(self.teacher, 1.0 - rate), TeacherSet(self.student, rate)]

    def hidden(
        self,
        sets: Sequence[TeacherSet],
        pairs: Sequence[tuple[IntArray, IntArray]],
        checkpoint: Callable[[], None] = lambda: None,
    ) -> list[Hidden]:
        """Hidden states of each (prompt, response) under each set."""
        columns: list[list[Any]] = [[None] * len(pairs) for _ in sets]
        prompts, responses = [prompt for prompt, _ in pairs], [response for _, response in pairs]
        units = pack(prompts, responses, self.budget, share=self.model.shares)
        for source, column in zip(sets, columns, strict=True):
            with self.active(source.weights):
                for unit in units:
                    checkpoint()
                    for member, states in zip(unit.members, self.forward(unit), strict=True):
                        column[member] = states
        return list(zip(*columns, strict=True))

    def _apply(
        self, found: Gradient, samples: Sequence[DistillSample], objective: ObjectiveConfig, learning_rate: float
    ) -> Update:
        """Take the step unless a number in it is not finite."""
        grads, norm = self.clip_gradient(found.grads)
        bad = non_finite_problems(samples, found.statistics, found.suspects)
        finite = bool(np.isfinite(found.loss) and np.isfinite(norm)) and not bad
        applied = finite and learning_rate > 0
        if applied:
            self.updates += 1  # counted first: whatever fails from here on may have changed a weight
            self.optimizer_step(grads, learning_rate)
        pairs, clip = list(zip(samples, found.statistics, strict=True)), objective.importance_clip
        distilled = [figures.divergence_R for s, figures in pairs if s.distil_weight > 0]
        ratio = np.concatenate([figures.ratio_R for _, figures in pairs])
        return Update(
            applied=applied,
            reason="" if applied else "learning_rate" if finite else "non_finite",
            loss=found.loss,
            divergence=float(np.concatenate(distilled).mean()) if distilled else 0.0,
            entropy=float(np.concatenate([figures.entropy_R for _, figures in pairs]).mean()),
            importance_mean=float(ratio.mean()),
            importance_clipped=float((ratio > clip).mean()) if clip is not None else 0.0,
            grad_norm=norm,
            tokens=int(ratio.size),
            divergence_T=tuple(f.log_q_R - f.log_p_R if s.distil_weight > 0 else EMPTY for s, f in pairs),
            teacher_seconds=found.teacher_seconds,
            non_finite=bad,
        )


def lora_parameters(cfg: AdapterConfig) -> dict[str, Any]:
    """mlx-lm's `lora_parameters` of an adapter configuration."""
    keys = {"keys": list(cfg.keys)} if cfg.keys is not None else {}
    return {"rank": cfg.rank, "scale": cfg.scale, "dropout": cfg.dropout, **keys}


def adapted_layers(cfg: AdapterConfig, depth: int) -> int:
    """How many of the last blocks have an adapter."""
    return depth if cfg.layers < 0 else min(cfg.layers, depth)


def check_arrays(arrays: Arrays, shapes: Mapping[str, Sequence[int]], what: str) -> None:
    """Raise ConfigError unless the arrays have exactly these names and shapes."""
    wrong = sorted(set(arrays) ^ set(shapes)) or [n for n in shapes if tuple(arrays[n].shape) != tuple(shapes[n])]
    if wrong:
        fix = "use the model and adapter it was made with"
        raise ConfigError(f"the {what} does not fit this model: {wrong[0]} differs", fix=fix)


def non_finite_problems(
    samples: Sequence[DistillSample], statistics: Sequence[RowStatistics], suspects: Sequence[int]
) -> tuple[str, ...]:
    """Return the problems whose numbers are not finite; if only a gradient is, those of its unit (`suspects`)."""
    faults = [
        s.problem_id
        for s, figures in zip(samples, statistics, strict=True)
        if not all(np.isfinite(column).all() for column in (*figures, s.rollout_logps_T, s.weights_T))
        or not np.isfinite([s.distil_weight, s.policy_weight, s.advantage]).all()
    ]
    return tuple(dict.fromkeys(faults or [samples[i].problem_id for i in suspects]))
