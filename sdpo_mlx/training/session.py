"""One training run on disk: what it remembers, its events, its evaluations, its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sdpo_mlx.backends.base import CONCURRENCY, Policy, SamplingParams
from sdpo_mlx.config import Config
from sdpo_mlx.core.progress import StartTask, no_tasks
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.evaluation.evaluate import Evaluation, evaluate
from sdpo_mlx.evaluation.spec import EvalSpec, held_out, sampling_params
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.rl.components import Components
from sdpo_mlx.rl.diagnostics import Candidates, candidates, due, pieces
from sdpo_mlx.rl.distillation import Batch
from sdpo_mlx.rl.metrics import StepFacts, step_metrics
from sdpo_mlx.rl.optimization import Learned, SampleKey
from sdpo_mlx.rl.rollouts import ProgressPolicy, Sampled, rollout_seeds
from sdpo_mlx.rl.schedule import learning_rate
from sdpo_mlx.rl.teacher_success import choose, teacher_success
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.events import EventLog
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.rollout_records import records
from sdpo_mlx.runs.tracking.manager import TrackerManager
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.training.health import HealthMonitor
from sdpo_mlx.types import DistillSample, Problem, Rollout, RolloutGroup

Observer = Callable[[Mapping[str, Any], Sequence[RolloutGroup]], None]


@dataclass(frozen=True)
class TrainState:
    """What a run remembers besides its weights; it goes into every checkpoint as JSON.

    `best_step` is -1 before the first evaluation; `stale` counts evaluations without a new best.
    """

    step: int = 0
    generations: int = 0
    evaluated: int = -1
    best_score: float = -1.0
    best_step: int = -1
    stale: int = 0
    watch: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Clock:
    """When a step began, and when its learning did (seconds, `time.perf_counter`)."""

    begun: float
    learning: float


class TrainingSession:
    """The parts of a run and its folder; holds nothing that a checkpoint would have to."""

    def __init__(
        self,
        setup: Components,
        folder: RunFolder,
        observe: Observer,
        interrupted: Callable[[], bool] = lambda: False,
        doing: StartTask = no_tasks,
    ) -> None:
        self.setup, self.folder, self.observe, self.interrupted = setup, folder, observe, interrupted
        self.doing = doing
        self.log, self.trackers = EventLog(folder.events), TrackerManager(setup.cfg, folder)
        self._seen: Mapping[SampleKey, dict[str, Candidates]] = {}
        self._compared: Mapping[str, float] = {}

    @property
    def cfg(self) -> Config:
        """The settings."""
        return self.setup.cfg

    @property
    def policy(self) -> Policy:
        """The model in training."""
        return self.setup.policy

    @property
    def task(self) -> Task:
        """The environment."""
        return self.setup.task

    @property
    def chat(self) -> Chat:
        """The tokenizer and its template."""
        return self.setup.chat

    @property
    def writer(self) -> ProgressPolicy:
        """The model as it answers a step's problems: each answer is told as it comes, then that they are graded."""
        return ProgressPolicy(self.policy, lambda: self.doing("sampling"), lambda: self.doing("grading"))

    @property
    def sampling(self) -> SamplingParams:
        """How rollouts are sampled."""
        rollout = self.cfg.rollout
        at_once = self.setup.cfg.rollout.concurrency or CONCURRENCY
        return SamplingParams(rollout.max_tokens, rollout.temperature, rollout.top_p, self.chat.eos_ids, at_once)

    def seeds(self, step: int, problems: Sequence[Problem]) -> list[list[int]]:
        """A seed a rollout of this step."""
        return rollout_seeds("rollout", self.cfg.train.seed, step, problems, self.cfg.rollout.group_size)

    def resume(self) -> TrainState:
        """The state to go on from: the last good checkpoint, or the start.

        Raises ConfigError when model, tokenizer or settings changed, StorageError when nothing can be read.
        """
        loaded = checkpoint.load(self.folder.checkpoints, expect=self.setup.identity())
        if loaded is None:
            self.log.rewind(-1)
            self.emit({"type": "run_started", "step": 0, "config": self.cfg.model_dump(mode="json")})
            self._warn(0, self.setup.warnings())
            return TrainState()
        state = TrainState(**loaded.meta["state"])
        self.policy.load_state(loaded.state)

        def scored_again(event: Mapping[str, Any]) -> bool:
            # What was saved when a score was interrupted does not know of that score.
            return event.get("type") == "eval" and not event.get("final") and int(event["step"]) > state.evaluated

        self.log.rewind(loaded.step, scored_again)
        self.folder.rewind(loaded.step)
        self.emit({"type": "resumed", "step": loaded.step})
        self._warn(loaded.step, (*self.setup.warnings(), *loaded.warnings, *self._moved(loaded.meta)))
        return state

    def _moved(self, meta: Mapping[str, Any]) -> tuple[str, ...]:
        """A word where another backend or device made the checkpoint: its numbers round otherwise."""
        here, there = [self.policy.info.backend, self.policy.info.device], meta.get("place")
        if there in (None, here):
            return ()
        return (f"this run was begun on {' '.join(there)} and goes on on {' '.join(here)}: alike, not bit for bit",)

    def _warn(self, step: int, warnings: Sequence[str]) -> None:
        for warning in warnings:
            self.emit({"type": "warning", "step": step, "message": warning})

    def look(self, step: int, groups: Sequence[RolloutGroup], samples: Sequence[DistillSample]) -> None:
        """Keep for the record what student and teacher hold likeliest now, and how often each is right.

        Changes nothing. Raises KeyboardInterrupt.
        """
        rollout, count = self.cfg.rollout, self.cfg.log.candidates if self.cfg.log.samples else 0
        looks = due(step, count, rollout.problems_per_step * rollout.group_size)
        self._seen = candidates(self.policy, self.chat, samples, count) if looks else {}
        self._compared = self._teacher_success(step, groups, samples)

    def _teacher_success(
        self, step: int, groups: Sequence[RolloutGroup], samples: Sequence[DistillSample]
    ) -> Mapping[str, float]:
        """At the first step and at each evaluation; a trust region has no weights to write with."""
        every, count = self.cfg.train.eval_every, self.cfg.log.teacher_answers
        evaluated = step == 0 or bool(every and step % every == 0)
        if not (evaluated and count) or self.cfg.teacher.kind == "trust_region":
            return {}
        room = self.policy.info.context_length - self.sampling.max_tokens
        chosen = choose(groups, samples, self.task, room, count)
        if not chosen:
            return {}
        self.doing("asking the self-teacher")
        seed = derive("teacher", self.cfg.train.seed, step)
        return teacher_success(self.policy, self.task, self.chat, chosen, self.sampling, seed, self.interrupted)

    def _more(self, place: SampleKey, turn: Rollout) -> dict[str, Any]:
        seen = self._seen.get(place)
        return {"pieces": pieces(self.chat, turn.ids_T), **({"candidates": seen} if seen else {})}

    def after(self, state: TrainState, sampled: Sampled, batch: Batch, learned: Learned, clock: Clock) -> TrainState:
        """Write what a step did, and the state after it; saves and raises where `Watch` says stop."""
        groups, skips, step = sampled.groups, (*sampled.skips, *batch.skips), state.step + 1
        watch = HealthMonitor.from_dict(state.watch)
        verdict = watch.observe(groups, batch.samples, skips, learned.update)
        total = state.generations + sum(len(group.rollouts) for group in groups)
        facts = self._facts(state.step, sampled, total, clock)
        metrics = step_metrics(groups, batch.samples, batch.contexts.values(), skips, learned.update, facts)
        counted: Callable[[], Mapping[str, float]] = getattr(self.task, "counters", dict)
        bad = learned.update.non_finite if learned.update else ()
        extra = {"non_finite": list(bad)} if bad else {}
        self.emit({"type": "step", "step": step, **metrics, **self._compared, **counted(), **extra}, groups)
        told = learned.update.warnings if learned.update else ()
        self._warn(step, (*verdict.warnings, *watch.compare(self._compared), *told))
        if told:  # the policy is another than the manifest says
            self.folder.write_manifest({**self.folder.read_manifest(), "policy": self.setup.policy_record()})
        if self.cfg.log.samples:
            kept = records(groups[: self.cfg.log.samples], batch, learned, self._more)
            self.folder.write_rollouts(step, kept)
        state = replace(state, step=step, generations=total, watch=watch.to_dict())
        if verdict.stop is not None:
            self.save(state)
            raise verdict.stop
        return state

    def evaluated(self, state: TrainState) -> TrainState:
        """Score on held-out problems where that is due; a new best becomes the run's adapter and is saved."""
        every, last = self.cfg.train.eval_every, self.cfg.train.steps
        due = state.step in (0, last) or bool(every and state.step % every == 0)
        if not due or state.evaluated == state.step:
            return state
        found = self.score("eval")
        if not found.problems:
            self.keep_adapter()
            return replace(state, evaluated=state.step, best_step=state.step)
        self.emit({"type": "eval", "step": state.step, **found.event()})
        if found.score <= state.best_score:
            return replace(state, evaluated=state.step, stale=state.stale + 1)
        self.keep_adapter()
        return replace(state, evaluated=state.step, best_score=found.score, best_step=state.step, stale=0)

    def score(self, purpose: str) -> Evaluation:
        """A held-out evaluation of the student as it is, with the seeds of this purpose."""
        cfg = self.cfg
        sampling = sampling_params(cfg.eval, self.setup.cfg.rollout, self.chat)
        exam = EvalSpec(held_out(self.task, cfg.eval), sampling, cfg.eval.samples, cfg.train.seed, purpose)
        told = self.doing("evaluating")
        return evaluate(self.policy, self.task, self.chat, exam, self.interrupted, on_progress=told)

    def out_of_patience(self, state: TrainState) -> bool:
        """Whether the last evaluations brought no new best."""
        return bool(self.cfg.train.patience) and state.stale >= self.cfg.train.patience

    def save_if_due(self, state: TrainState) -> None:
        """A checkpoint every `save_every` steps, and at each new best."""
        if state.step % self.cfg.train.save_every == 0 or state.best_step == state.step:
            self.emit({"type": "checkpoint", "step": state.step})
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Write the state after its last whole step; the last two and the best are kept."""
        self.doing("saving")
        self.log.sync()
        best = {state.best_step} if state.best_step > 0 else set()
        place = [self.policy.info.backend, self.policy.info.device]
        meta = {**self.setup.identity(), "place": place, "state": asdict(state)}
        checkpoint.save(self.folder.checkpoints, state.step, self.policy.state(), meta, keep_steps=best)

    def keep_adapter(self) -> None:
        """Make the student the run's adapter, in mlx-lm's layout."""
        self.folder.save_adapter(self.policy.state()["student"], self.policy.adapter_config())

    def emit(self, event: Mapping[str, Any], groups: Sequence[RolloutGroup] = ()) -> None:
        """Append to the event stream, show it, and tell the trackers; of one that fails there is a warning."""
        written = self.log.emit(event)
        self.observe(written, groups)
        self._warn(written["step"], self.trackers.tell(written))

    def close(self, step: int = 0) -> None:
        """Close trackers and event stream; a second call does nothing."""
        try:
            self._warn(step, self.trackers.close())
        finally:
            self.log.close()

    def _facts(self, step: int, sampled: Sampled, generations: int, clock: Clock) -> StepFacts:
        now = time.perf_counter()
        return StepFacts(
            learning_rate=learning_rate(step, self.cfg.train),
            generations=generations,
            generate_seconds=sampled.generate_seconds,
            grade_seconds=sampled.grade_seconds,
            learn_seconds=now - clock.learning,
            total_seconds=now - clock.begun,
            memory=self.policy.memory(),
        )
