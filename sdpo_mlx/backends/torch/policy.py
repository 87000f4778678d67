"""The policy on PyTorch: one model, a student's and a teacher's adapter, AdamW (contract: `backends/base.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sdpo_mlx.backends.autograd_plan import CPU_TOKENS
from sdpo_mlx.backends.base import MICRO_BATCH_TOKENS, Arrays, PolicyInfo, SamplingParams, Scores
from sdpo_mlx.backends.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from sdpo_mlx.backends.learner import Interrupted, Learner, Rollout, TopK
from sdpo_mlx.backends.loss_head import Gradient, Hidden, LearnBatch, TeacherSet, Weights
from sdpo_mlx.backends.packing import Unit
from sdpo_mlx.backends.torch import adapter, generation
from sdpo_mlx.backends.torch.checks import checked
from sdpo_mlx.backends.torch.device import MemoryMeter, device_of
from sdpo_mlx.backends.torch.gradient import TorchGradientPass, hidden_states, ids_on, mixed_logits
from sdpo_mlx.backends.torch.loading import load
from sdpo_mlx.backends.torch.losses import at, log_softmax
from sdpo_mlx.backends.torch.model import Model, blocks
from sdpo_mlx.backends.torch.out_of_memory import (
    bound_memory,
    free_bytes,
    is_out_of_memory,
    release,
    reported,
)
from sdpo_mlx.backends.torch.rollouts.choice import choose
from sdpo_mlx.backends.torch.rollouts.engine import RolloutEngine
from sdpo_mlx.backends.torch.rollouts.vllm_engine import VLLM, Base, Peft, Student
from sdpo_mlx.backends.torch.sharding import shard
from sdpo_mlx.backends.weight_names import by_mlx_names, by_transformers_names, mlx_name
from sdpo_mlx.config import ModelConfig, ObjectiveConfig, RolloutConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.models.peft_layout import to_peft
from sdpo_mlx.types import DistillSample, IntArray, Role

LONGEST_PROMPT = 8_192  # tokens that vllm plans for
LOOP = RolloutConfig(engine="loop")
SMALLEST_BUDGET = 64  # tokens of one pass below which running out of memory is final
ROWS_SHARE = 0.8  # of the free memory that rollouts may fill: attention repeats keys and values, a layer at a time
RECOMPUTED = "out of memory: blocks run again in the backward pass from now on, slower (train.grad_checkpoint)"
Result = TypeVar("Result")


class TorchPolicy(Learner):
    """A model with its student adapter, teacher adapter and optimizer."""

    model: Model

    def __init__(
        self,
        path: Path,
        model: ModelConfig,
        teacher: TeacherConfig,
        train: TrainConfig,
        rollout: RolloutConfig | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        super().__init__(model, teacher, train)
        self.bits = model.bits
        bound_memory(device_of(model.device), train.memory_gb)
        sharded = model.shard and group.size > 1
        # All ranks must have read the model before the first waits for another.
        with group.together() if sharded else nullcontext():
            loaded = load(path, model, on_host=sharded)
        self.meter = MemoryMeter(loaded.model.device)
        whole, self.config, self.notes = loaded.model.whole, loaded.config, loaded.notes
        if model.shard and not sharded:
            self.notes = (
                *self.notes,
                "model.shard: this process holds the whole base; start with torchrun to split it",
            )
        # A prompt that runs once is read by passes that FSDP does not connect with it, as by blocks that run again.
        opened = replace(loaded.model, recompute=bool(train.grad_checkpoint), sharded=sharded, shares=not sharded)
        with reported("while adding the adapter", "lower model.adapter.rank, or use a smaller model"):
            self.parameters = adapter.attach(whole, model.adapter, derive(train.seed, "adapter"), self.config)
            whole.eval()
            if sharded:
                shard(opened, self.parameters, group)
            self.model = checked(opened, self.parameters)
            self.student = {name: each.data for name, each in self.parameters.items()}
            self.changes = 0  # of the student's weights
            self.teacher, self.layers = adapter.copied(self.student), len(blocks(self.model.whole))
        self.optimizer = torch.optim.AdamW(self.parameters.values(), weight_decay=train.weight_decay, fused=True)
        # A GPU reports that it is out of memory, and the budget is halved; a machine without one starts to swap.
        default = CPU_TOKENS if self.model.device.type == "cpu" else MICRO_BATCH_TOKENS
        self.budget = train.micro_batch_tokens or default
        self.max_tokens = (rollout or LOOP).max_tokens
        self.generation: RolloutEngine
        self.generation, self.engine_note = choose(rollout or LOOP, self.model, partial(self._vllm, path))

    @property
    def info(self) -> PolicyInfo:
        """See `Policy.info`."""
        device = self.model.device.type
        return PolicyInfo(
            name=self.name,
            backend="torch",
            device=device,
            dtype=str(self.model.whole.dtype).removeprefix("torch."),
            vocab_size=self.model.vocab_size,
            context_length=int(
                getattr(self.model.whole.config.get_text_config(), "max_position_embeddings", None) or 4_096
            ),
            trainable=sum(each.numel() for each in self.parameters.values()),
            parameters=self.model.whole.num_parameters(),
            bitwise=device == "cpu",
            details={
                "torch": torch.__version__,
                "architecture": str((self.config.get("text_config") or self.config).get("model_type", "")),
                "micro_batch_tokens": str(self.budget),
                "card": torch.cuda.get_device_name() if device == "cuda" else "",
            },
        )

    def state(self) -> Mapping[str, Arrays]:
        """See `Policy.state`; the names and shapes are the same on every backend."""
        return {
            "student": adapter.to_numpy(self.student),
            "teacher": adapter.to_numpy(self.teacher),
            "optimizer": {
                "updates": np.array(self.updates, dtype=np.int64),
                "step": np.array(self.updates, dtype=np.uint64),
                "learning_rate": np.array(self.optimizer.param_groups[0]["lr"], dtype=np.float32),
                **adapter.to_numpy(self._moments()),
            },
        }

    def load_state(self, state: Mapping[str, Arrays]) -> None:
        """Restore what `state` returned, here or on another backend."""
        # Everything is checked before anything is replaced: half a state must not be trained on.
        named = {part: self._named(arrays) for part, arrays in state.items()}
        student, teacher = (adapter.from_numpy(named[part], self.student, part) for part in ("student", "teacher"))
        plain = {name: array for name, array in named["optimizer"].items() if "|" in name}
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
        """See `Policy.load_student`."""
        self._put(adapter.from_numpy(self._named(arrays), self.student, "adapter"))

    def memory(self) -> dict[str, int]:
        """See `Policy.memory`."""
        return self.meter.read()

    def warnings(self) -> tuple[str, ...]:
        """See `Policy.warnings`."""
        left_out = adapter.left_out(self.model.whole) if self.adapter.kind != "full" else ()
        engine = (self.engine_note,) if self.engine_note else ()
        return (*super().warnings(), *left_out, *self.notes, *engine)

    def most_rows(self, tokens: int) -> int:
        """See `Learner.most_rows`; on a GPU the loop samples as many as its free memory holds, at least one."""
        free = free_bytes(self.model.device)
        if free is None or not self.model.batched or self.generation.name != "loop":
            return self.rows
        a_token, a_row = self._row_bytes
        return min(self.rows, max(1, int(ROWS_SHARE * free / (a_token * tokens + a_row))))

    @cached_property
    def _row_bytes(self) -> tuple[int, int]:
        return generation.row_bytes(self.model)

    def begin_phase(self, phase: str) -> None:
        """See `Learner.begin_phase`."""
        self.meter.begin(phase)

    # What runs out of memory is done again with less at once

    def generate(
        self,
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Interrupted = lambda: False,
    ) -> Iterator[Rollout]:
        """See `Policy.generate`; if memory runs out, unfinished rollouts begin again, half as many at once.

        They are the same up to rounding, since each depends on its own seed alone. Raise ConfigError if one alone does
        not fit.
        """
        left = [dict(enumerate(own)) for own in seeds]  # seeds by their places
        while any(left):
            places, again = [list(own) for own in left], [list(own.values()) for own in left]
            rows = self.most_rows(max(map(len, prompts)) + sampling.max_tokens)
            together = max(min(sampling.concurrency, rows), min(rows, max(map(len, again))))
            at_once = min(together, sum(map(len, again)))
            try:
                for at, n, found in super().generate(prompts, sampling, again, interrupted):
                    del left[at][places[at][n]]
                    yield at, places[at][n], found
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if at_once == 1:
                    fix = f"lower rollout.max_tokens, {self._smaller_model}"
                    raise ConfigError("out of memory while sampling one rollout", where="model", fix=fix) from error
                self.rows = max(1, at_once // 2)
                shortage = f"out of memory: at most {self.rows} rollouts are sampled at once from now on"
                self.shortages["rollouts"] = shortage
            if any(left):
                release(self.model.device)

    def stream(self, prompt: IntArray, sampling: SamplingParams, seed: int) -> Iterator[int]:
        """See `Policy.stream`. Raise ConfigError if memory runs out."""
        with reported("while sampling one rollout", f"lower rollout.max_tokens, {self._smaller_model}"):
            yield from super().stream(prompt, sampling, seed)

    def score(
        self,
        role: Role,
        sequences: Sequence[IntArray],
        spans: Sequence[tuple[int, int]],
        top_k: int = 0,
        temperature: float = 1.0,
    ) -> list[Scores]:
        """See `Policy.score`; begins again with half the budget whenever memory runs out.

        Raise ConfigError at the smallest budget.
        """
        before = self.budget
        run = partial(super().score, role, sequences, spans, top_k, temperature)
        fix = f"lower rollout.max_tokens and teacher.max_context_tokens, {self._smaller_model}"
        with reported("while scoring one rollout", fix):
            scores = self._in_parts(run, max((ids.size for ids in sequences), default=0))
        if self.budget < before:
            shortage = f"out of memory: at most {self.budget} tokens are forwarded at once from now on"
            self.shortages["tokens"] = shortage
        return scores

    def gradient(
        self,
        samples: Sequence[DistillSample],
        objective: ObjectiveConfig,
        temperature: float,
        checkpoint: Callable[[], None],
    ) -> Gradient:
        """See `Learner.gradient`; begins again with half the budget whenever memory runs out.

        If not even one rollout fits, blocks run again in the backward pass from then on. Raise ConfigError if that
        does not help.
        """
        if self.model.sharded:  # other ranks wait within the pass that failed
            return super().gradient(samples, objective, temperature, checkpoint)
        fix = f"lower rollout.max_tokens and teacher.max_context_tokens, {self._smaller_model}"
        run = partial(super().gradient, samples, objective, temperature, checkpoint)
        longest, before = max(max(s.student_ids.size, s.teacher_ids.size) for s in samples), self.budget
        with reported("in a step on one rollout, with train.grad_checkpoint", fix):
            if not self.model.recompute:
                try:
                    return self._in_parts(run, longest)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                release(self.model.device)
                self.model, self.budget = replace(self.model, recompute=True), before
                self.shortages["blocks"] = RECOMPUTED
            return self._in_parts(run, longest)

    def _in_parts(self, run: Callable[[], Result], longest: int) -> Result:
        """Return what `run` returns, with half the budget of a pass whenever memory runs out.

        Raise the error if the longest sequence already runs alone.
        """
        while True:
            try:
                return run()
            except Exception as error:
                if not is_out_of_memory(error) or self.budget <= max(SMALLEST_BUDGET, longest):
                    raise
            self.budget //= 2
            release(self.model.device)

    @property
    def _smaller_model(self) -> str:
        return "or use a smaller model" if self.bits else "set model.bits=4, or use a smaller model"

    # The array functions of `Learner`

    def active(self, weights: Weights) -> AbstractContextManager[None]:
        """See `Learner.active`."""
        return adapter.active(self.parameters, weights)

    @torch.no_grad()
    def forward(self, unit: Unit) -> Sequence[Tensor]:
        """See `Learner.forward`."""
        return hidden_states(self.model, unit).split(list(unit.counts))

    @torch.no_grad()
    def log_probs(
        self, hidden: Hidden, sets: Sequence[TeacherSet], ids_T: IntArray, top_k: int, temperature: float
    ) -> TopK:
        """See `Learner.log_probs`."""
        logp_TV = log_softmax(mixed_logits(self.model, self.parameters, hidden, sets), temperature)
        top = logp_TV.topk(top_k, dim=-1)
        logps_T = at(logp_TV, ids_on(self.model, ids_T))
        return logps_T.cpu().numpy(), top.indices.int().cpu().numpy(), top.values.cpu().numpy()

    def gradient_pass(self, batch: LearnBatch) -> TorchGradientPass:
        """See `Learner.gradient_pass`."""
        return TorchGradientPass(batch, self.model, self.parameters)

    def clip_gradient(self, grads: Weights) -> tuple[Weights, float]:
        """See `Learner.clip_gradient`; in place."""
        norm = torch.nn.utils.get_total_norm(grads.values())
        scale = (self.train_cfg.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(list(grads.values()), scale)  # on a GPU few launches for all
        return grads, float(norm)

    def optimizer_step(self, grads: Weights, learning_rate: float) -> None:
        """See `Learner.optimizer_step`."""
        for name, parameter in self.parameters.items():
            parameter.grad = grads[name]
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self.changes += 1

    def moved_teacher(self, rate: float) -> Weights:
        """See `Learner.moved_teacher`."""
        with reported("while updating the teacher", f"lower model.adapter.rank, {self._smaller_model}"):
            return self._moved_teacher(rate)

    def _moved_teacher(self, rate: float) -> Weights:
        if rate in (0.0, 1.0):
            return adapter.copied(self.student) if rate else self.teacher
        old, new = list(self.teacher.values()), [self.student[name] for name in self.teacher]
        step = torch._foreach_mul(torch._foreach_sub(new, old), rate)
        return dict(zip(self.teacher, torch._foreach_add(old, step), strict=True))

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Free what only sampling needs before, and the gradient afterwards."""
        self.generation.rest()
        try:
            with reported("in the optimizer's step", f"lower model.adapter.rank, {self._smaller_model}"):
                yield
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def _put(self, student: Weights) -> None:
        # In place: a captured graph of the sampler reads the weights where they were.
        for name, each in self.student.items():
            each.copy_(student[name])
        self.changes += 1

    def _vllm(self, path: Path, python: str) -> RolloutEngine:
        """Start vllm on the same base. Raise ConfigError if it cannot sample with this adapter."""
        if self.adapter.kind != "lora" or self.bits:
            what = "vllm samples with a LoRA on a base that is not quantized here"
            raise ConfigError(what, where="rollout.engine", fix="use model.adapter.kind=lora without model.bits")

        def peft() -> Peft:
            arrays = by_transformers_names(adapter.to_numpy(self.student), self.config)
            return to_peft(arrays, self.adapter_config(), self.name)

        # Keys of the whole context may not fit; rollouts with longer prompts end the run with a line.
        length = min(self.info.context_length, self.max_tokens + LONGEST_PROMPT)
        base = Base(path, self.info.dtype, self.adapter.rank, length)
        return VLLM(python, base, Student(lambda: self.changes, peft), self.model.device)

    def _named(self, arrays: Arrays) -> Arrays:
        """The arrays by mlx-lm's names, without frozen weights: older runs on torch have other names, and towers."""
        frozen = {mlx_name(name, self.config) for name, p in self.model.whole.named_parameters() if not p.requires_grad}
        found = by_mlx_names(arrays, self.config)
        return {name: array for name, array in found.items() if name.partition("|")[0] not in frozen}

    def _moments(self) -> Weights:
        found: Weights = {}
        for name, parameter in self.parameters.items():
            own = self.optimizer.state.get(parameter, {})
            found[f"{name}|m"] = own.get("exp_avg", torch.zeros_like(parameter.data))
            found[f"{name}|v"] = own.get("exp_avg_sq", torch.zeros_like(parameter.data))
        return found
