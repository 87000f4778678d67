"""One training run and its folder: state, events, evaluations, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from sdpo_mlx.backends.base import Arrays
from sdpo_mlx.config import Config, risks
from sdpo_mlx.core.progress import StartTask, no_tasks
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.evaluation import probe_verdict
from sdpo_mlx.evaluation.evaluate import Evaluation, evaluate, kept_rollouts
from sdpo_mlx.evaluation.forgetting import Reference, divergence_from
from sdpo_mlx.evaluation.probe import probe_groups
from sdpo_mlx.evaluation.spec import training_spec
from sdpo_mlx.models.resolve import EMBEDDED
from sdpo_mlx.rl.agreement import shares
from sdpo_mlx.rl.components import Components
from sdpo_mlx.rl.diagnostics import Candidates, candidates, choose, due, teacher_success
from sdpo_mlx.rl.distillation import Batch
from sdpo_mlx.rl.leakage import leakage
from sdpo_mlx.rl.metrics import StepFacts, mean, step_metrics
from sdpo_mlx.rl.optimization import LearnResult, SampleKey, learning_rate
from sdpo_mlx.rl.rollouts import ProgressPolicy, Sampled, rollout_seeds
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.events import EventLog, read_events
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.pace import affordable, is_due
from sdpo_mlx.runs.rollout_records import records
from sdpo_mlx.runs.tracking.manager import TrackerManager
from sdpo_mlx.training import health
from sdpo_mlx.training.failures import FailureMonitor
from sdpo_mlx.training.history import History
from sdpo_mlx.training.recovery import Recovery
from sdpo_mlx.types import DistillSample, Problem, RolloutGroup

TEACHER_EVERY = 10  # steps between looks at the self-teacher without evaluations
MOST_ROLLBACKS = 2  # at a quarter of the learning rate the cause is another one
PROBE_PROBLEMS, PROBE_ROLLOUTS = 32, 4  # of the first step, and of student and self-teacher on each
OnEvent = Callable[[Mapping[str, Any], Sequence[RolloutGroup]], None]


@dataclass(frozen=True)
class TrainState:
    """What a run remembers besides its weights; saved in every checkpoint as JSON.

    `best_step` is -1 before the first evaluation; `stale` counts evaluations without a new best.
    """

    step: int = 0
    generations: int = 0
    evaluated: int = -1
    best_score: float = -1.0
    best_step: int = -1
    stale: int = 0
    declined: bool = False  # the last evaluation was significantly below the best (`health.held_out`)
    eval_every: int = 0  # what a slow machine got in place of the setting; 0: the setting
    rollbacks: int = 0  # each halved the learning rate
    agreements: Mapping[str, Sequence[float]] = field(default_factory=dict)  # objective `auto`: the last ones
    watch: dict[str, Any] = field(default_factory=dict)  # FailureMonitor's counters; the key is in old checkpoints


@dataclass(frozen=True)
class StepClock:
    """When a step began, and when its learning began (seconds, `time.perf_counter`)."""

    begun: float
    learning: float


class TrainingSession:
    """The components of a run and its folder; holds nothing that a checkpoint would have to hold.

    `on_event` receives each event and, with a step, its rollout groups. `start_task` reports what runs now.
    """

    def __init__(
        self,
        components: Components,
        folder: RunFolder,
        on_event: OnEvent,
        interrupted: Callable[[], bool] = lambda: False,
        start_task: StartTask = no_tasks,
    ) -> None:
        self.components, self.cfg, self.folder = components, components.cfg, folder
        self.recovery = Recovery(components.policy, folder, components.sampling)
        self.on_event, self.interrupted, self.start_task = on_event, self.recovery.unless(interrupted), start_task
        self.log, self.trackers = EventLog(folder.events), TrackerManager(components.cfg, folder)
        self.reference: Reference | None = None  # the base on general prompts, once `fit` has it
        self._candidates: Mapping[SampleKey, dict[str, Candidates]] = {}
        self.history = History()
        self._teacher_success: Mapping[str, float] = {}
        self._untouched: Evaluation | None = None
        self._evaluation_seconds = 0.0  # of the untouched student
        self._step = 0
        self._updates = 0  # optimizer steps behind the last whole step

    @property
    def generator(self) -> ProgressPolicy:
        """The policy with progress reports: one for each rollout, then that grading goes on."""
        policy = self.components.policy
        return ProgressPolicy(policy, lambda: self.start_task("sampling"), lambda: self.start_task("grading"))

    def seeds(self, step: int, problems: Sequence[Problem]) -> list[list[int]]:
        """Return one seed for each rollout of this step."""
        return rollout_seeds("rollout", self.cfg.train.seed, step, problems, self.cfg.rollout.group_size)

    def phase(self, name: str, most: int | None = None) -> AbstractContextManager[None]:
        """See `Recovery.phase`; the step is the current one."""
        return self.recovery.phase(name, self._step, most)

    def resume(self) -> TrainState:
        """Return the state of the last good checkpoint, or the initial state.

        Raises ConfigError if model, tokenizer or settings changed, StorageError if no checkpoint can be read,
        CrashedError if the process ended twice at the same place, SelfTestError if this GPU's gradients are wrong.
        """
        state = self._loaded()
        self._step = state.step
        if crashed := self.recovery.resume():
            self.warn(state.step, [crashed])
        return state

    def _loaded(self) -> TrainState:
        loaded = checkpoint.load(self.folder.checkpoints, expect=self.components.identity())
        if loaded is None:
            if start := self.cfg.model.adapter.start:
                self.components.policy.load_student(RunFolder(start).load_adapter()[0])
                self.components.start_from_student()
            self.log.rewind(-1)
            config = self.components.requested.model_dump(mode="json")
            self.emit({"type": "run_started", "step": 0, "config": config})
            # The embedded model is held against finite differences by tests.
            self._warn_at_start(0, slope=self.cfg.model.name != EMBEDDED)
            return TrainState()
        state = TrainState(**loaded.meta["state"])
        self.components.policy.load_state(loaded.state)
        self._updates = optimizer_steps(loaded.state)

        def evaluated_again(event: Mapping[str, Any]) -> bool:
            # A checkpoint saved while an evaluation was interrupted does not include its score.
            of_evaluation = event.get("type") == "decline" or event.get("rule") in health.AFTER_EVALUATION
            is_score = event.get("type") == "eval" and not event.get("final")
            return (is_score or of_evaluation) and int(event["step"]) > state.evaluated

        self.log.rewind(loaded.step, evaluated_again)
        for event in read_events(self.folder.events):
            self.history.add(event)
        self.folder.rewind(loaded.step)
        self.emit({"type": "resumed", "step": loaded.step})
        self._warn_at_start(loaded.step, *loaded.warnings)
        info, before = self.components.policy.info, loaded.meta.get("place")
        if before not in (None, [info.backend, info.device]):  # rounding differs
            change = f"this run began on {' '.join(before)} and resumes on {info.backend} {info.device}"
            self.warn(loaded.step, [f"{change}: results agree, but not bit for bit"])
        elif (dtype := loaded.meta.get("dtype")) not in (None, info.dtype):  # only if the manifest was lost
            change = f"this run began in {dtype} and resumes in {info.dtype}"
            self.warn(loaded.step, [f"{change}: set model.dtype to keep the type"])
        return state

    def probe_once(self, state: TrainState, groups: Sequence[RolloutGroup]) -> TrainState:
        """Before the first update, compare student and self-teacher on the step's problems; warn if it is no better.

        The step's rollouts are the attempts of the probe. For objective `auto` the state gets its result as the first
        evidence; nothing else of the run changes. A resumed run reads the event instead. Raises KeyboardInterrupt.
        """
        cfg = self.cfg
        if state.step or not cfg.train.probe or cfg.objective.kind == "grpo" or not groups:
            return state
        event = next((event for event in read_events(self.folder.events) if event.get("type") == "probe"), None)
        if event is None:
            parts, first = self.components, groups[:PROBE_PROBLEMS]
            found = probe_groups(parts, first, PROBE_ROLLOUTS, self.interrupted, self.start_task, self.phase)
            conclusion = probe_verdict.judge(found, cfg)
            signs = found.results[0].signs if found.results else {}
            event = {"type": "probe", "step": 0, **probe_verdict.event(found, conclusion), "agreements": dict(signs)}
            self.emit(event)
            # If nothing has succeeded at all, the rule `no_success` says so after the first steps.
            rewarded = any(each.reward for group in groups for each in group.feedback)
            warns = rewarded or not self.history.hopeless
            if conclusion.kind == "does not learn" and found.student_score[0] < health.TEACHER_NEEDED and warns:
                self.warn(0, [f"probe: {conclusion.sentence} (`sdpo probe` tries other contexts and templates)"])
        return replace(state, agreements=event.get("agreements", {})) if cfg.objective.kind == "auto" else state

    def _warn_at_start(self, step: int, *more: str, slope: bool = False) -> None:
        """Emit the warnings of a start; raise what `Policy.check_gradient` raises."""
        checked = self.components.policy.check_gradient(slope=slope)
        self.warn(step, (*risks.warnings(self.cfg), *self.components.warnings(), *checked, *more))

    def record_diagnostics(self, step: int, groups: Sequence[RolloutGroup], samples: Sequence[DistillSample]) -> None:
        """Keep, for the report, the likeliest tokens of student and teacher, and how often each succeeds.

        Changes no weights. Raises KeyboardInterrupt.
        """
        cfg, parts = self.cfg, self.components
        count = cfg.log.candidates if cfg.log.samples else 0
        is_due = due(step, count, cfg.rollout.problems_per_step * cfg.rollout.group_size)
        with self.phase("learn"):
            self._candidates = candidates(parts.policy, parts.chat, samples, count) if is_due else {}
        self._teacher_success = {}
        evaluated = step % (cfg.train.eval_every or TEACHER_EVERY) == 0
        # A trust region mixes logits: there is no single set of weights to sample from.
        if not (evaluated and cfg.log.teacher_answers) or cfg.teacher.kind == "trust_region":
            return
        room = parts.policy.info.context_length - parts.sampling.max_tokens
        chosen = choose(groups, samples, parts.task, room, cfg.log.teacher_answers)
        if chosen:
            self.start_task("asking the self-teacher")
            seed = derive("teacher", cfg.train.seed, step)
            with self.phase("generate"):
                self._teacher_success = teacher_success(
                    parts.policy, parts.task, parts.chat, chosen, parts.sampling, seed, self.interrupted
                )

    def record_step(
        self, state: TrainState, sampled: Sampled, batch: Batch, learned: LearnResult, clock: StepClock
    ) -> TrainState:
        """Write the step's event, warnings and rollouts; return the state after it.

        Saves and raises if `FailureMonitor` says that the run must stop.
        """
        groups, skips, step, update = sampled.groups, (*sampled.skips, *batch.skips), state.step + 1, learned.update
        monitor = FailureMonitor.from_dict(state.watch)
        failures = monitor.observe(groups, skips, update)
        self._step, self._updates = step, self._updates + learned.steps
        state = replace(
            state,
            step=step,
            generations=state.generations + sum(len(group.rollouts) for group in groups),
            agreements=batch.agreements,
        )
        now = time.perf_counter()
        facts = StepFacts(
            learning_rate=learning_rate(state.step - 1, self.settings(state).train),
            generations=state.generations,
            generate_seconds=sampled.generate_seconds,
            grade_seconds=sampled.grade_seconds,
            learn_seconds=now - clock.learning,
            total_seconds=now - clock.begun,
            memory=self.components.policy.memory(),
        )
        metrics = step_metrics(groups, batch.samples, batch.contexts.values(), skips, update, facts)
        extra: dict[str, Any] = {"non_finite": list(update.non_finite)} if update and update.non_finite else {}
        extra |= {"leakage/rate": leakage(groups, self.cfg.teacher), **self._teacher_success}
        if self.cfg.objective.kind == "auto":
            extra |= {f"agreement/{kind}": mean(found) for kind, found in batch.agreements.items()}
            extra |= {f"share/{kind}": share for kind, share in asdict(shares(batch.agreements)).items()}
        counts = self.components.task.counters()
        self.emit({"type": "step", "step": step, **metrics, **counts, **extra}, groups)
        policy_warnings = update.warnings if update else ()
        self.warn(step, (*failures.warnings, *policy_warnings))
        self.check_health("step", step)
        if policy_warnings:  # the policy changed from what the manifest says, such as its micro-batch size
            policy = self.components.policy_record()
            self.folder.write_manifest({**self.folder.read_manifest(), "policy": policy})
        if self.cfg.log.samples:
            rows = records(groups[: self.cfg.log.samples], batch, learned, self.components.chat, self._candidates)
            self.folder.write_rollouts(step, rows)
        state = replace(state, watch=monitor.to_dict())
        if step == 1:
            state = self._with_affordable_evaluations(state, facts.generate_seconds + facts.learn_seconds)
        if failures.stop is not None:
            self.save(state)
            raise failures.stop
        return state

    def _with_affordable_evaluations(self, state: TrainState, step_seconds: float) -> TrainState:
        """Evaluate less often where evaluations would take more than `train.eval_share` of the time.

        Decided once, from the first step, and saved: a resumed run does the same.
        """
        train, seconds = self.cfg.train, self._evaluation_seconds
        every = affordable(train.eval_every, seconds, step_seconds, train.eval_share)
        if every == train.eval_every:
            return state
        message = (
            f"an evaluation takes {seconds:,.0f} s and a step {step_seconds:,.0f} s: the run evaluates every {every} "
            f"steps, not every {train.eval_every}, and after the last. Set eval.problems or eval.samples lower, or "
            "train.eval_share=1 to keep the interval"
        )
        self.emit({"type": "warning", "step": state.step, "message": message, "eval_every": every})
        return replace(state, eval_every=every)

    def evaluate_if_due(self, state: TrainState) -> TrainState:
        """Score on held-out problems every `eval_every` steps; a new best becomes the run's adapter."""
        train = self.cfg.train
        every = (train.eval_share < 1 and state.eval_every) or train.eval_every
        if not is_due(state.step, self.cfg.train.steps, every) or state.evaluated == state.step:
            return state
        found = self.score("eval") if state.step else self.score_untouched()
        if not found.problems:
            self.keep_adapter()
            return replace(state, evaluated=state.step, best_step=state.step)
        event = {"type": "eval", "step": state.step, **found.event(), "rewards": found.rewards}
        if self.reference is not None:
            shift, error = divergence_from(self.reference, self.components.policy)
            event |= {"forgetting/divergence": shift, "forgetting/divergence_error": error}
        self.emit(event)
        if self.cfg.log.samples:
            rows = kept_rollouts(found, self.components.task.problems("held_out"))
            self.folder.write_rollouts(state.step, rows, "eval")
        self.check_health("eval", state.step)
        if found.score <= state.best_score:
            declined = health.held_out(self.history) is not None
            return self._decline(replace(state, evaluated=state.step, stale=state.stale + 1, declined=declined))
        self.keep_adapter()
        return replace(
            state, evaluated=state.step, best_score=found.score, best_step=state.step, stale=0, declined=False
        )

    def _decline(self, state: TrainState) -> TrainState:
        """Do what `train.on_decline` says if the held-out score has declined."""
        if not state.declined or self.cfg.train.on_decline == "warn":
            return state
        event = {"type": "decline", "step": state.step, "rule": "held_out", "best_step": state.best_step}
        if self._declined_for_good(state):
            message = (
                f"stopped: the held-out score has declined. The adapter of step {state.best_step}, the best, is kept"
            )
            self.emit({**event, "action": "stop", "message": message})
            return state
        best = checkpoint.load_step(self.folder.checkpoints, state.best_step)
        self.components.policy.load_state(best.state)
        self._updates = optimizer_steps(best.state)
        state = replace(state, declined=False, stale=0, rollbacks=state.rollbacks + 1)
        rate = self.settings(state).train.learning_rate
        message = (
            f"rolled back to step {state.best_step}, the best, with its teacher and optimizer; the learning rate is "
            f"halved to {rate:g} (rollback {state.rollbacks} of {MOST_ROLLBACKS})"
        )
        self.emit({**event, "action": "rollback", "learning_rate": rate, "message": message})
        return state

    def settings(self, state: TrainState) -> Config:
        """Return the run's settings with the learning rate that its rollbacks left."""
        if not state.rollbacks:
            return self.cfg
        rate = self.cfg.train.learning_rate / 2**state.rollbacks
        return self.cfg.model_copy(update={"train": self.cfg.train.model_copy(update={"learning_rate": rate})})

    def score(self, purpose: str) -> Evaluation:
        """Evaluate the student as it is on held-out problems, with the seeds of this purpose."""
        parts, on_progress = self.components, self.start_task("evaluating")
        spec = training_spec(parts, purpose)
        with self.phase("generate"):
            return evaluate(parts.policy, parts.task, parts.chat, spec, self.interrupted, on_progress=on_progress)

    def score_untouched(self) -> Evaluation:
        """Evaluate the untouched student, once: the score before training is also that of step 0."""
        if self._untouched is None:
            begun = time.perf_counter()
            self._untouched = self.score("final")
            self._evaluation_seconds = time.perf_counter() - begun
        return self._untouched

    def is_over(self, state: TrainState) -> bool:
        """Return whether the run ends before its last step: `patience` is out, or the score declined for good."""
        patience = self.cfg.train.patience
        return self._declined_for_good(state) or (bool(patience) and state.stale >= patience)

    def _declined_for_good(self, state: TrainState) -> bool:
        action = self.cfg.train.on_decline
        return state.declined and (action == "stop" or (action == "rollback" and state.rollbacks >= MOST_ROLLBACKS))

    def save_start(self, state: TrainState) -> None:
        """Save the untouched student if a rollback may need it: no evaluation may ever beat its score."""
        if state.step == 0 and self.cfg.train.on_decline == "rollback":
            self.save(state)

    def save_if_due(self, state: TrainState) -> None:
        """Save a checkpoint every `save_every` steps, and at each new best."""
        if state.step % self.cfg.train.save_every == 0 or state.best_step == state.step:
            self.emit({"type": "checkpoint", "step": state.step})
            self.save(state)

    def save_after_error(self, state: TrainState) -> None:
        """Save the last whole step if the weights are still those after it, and if anything was learned.

        A step that was broken off is not saved: the checkpoint before is good. No error of saving hides the first.
        """
        with suppress(Exception):
            whole = state.step == self._step and optimizer_steps(self.components.policy.state()) == self._updates
            if state.step and whole:
                self.save(state)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint of the state after its last whole step; keep the last two and the best."""
        self.start_task("saving")
        self.log.sync()
        best = {state.best_step} if state.best_step >= 0 else set()
        policy = self.components.policy
        place = [policy.info.backend, policy.info.device]
        meta = {**self.components.identity(), "place": place, "dtype": policy.info.dtype, "state": asdict(state)}
        checkpoint.save(self.folder.checkpoints, state.step, policy.state(), meta, keep_steps=best)

    def keep_adapter(self) -> None:
        """Make the student the run's adapter, in mlx-lm's layout."""
        policy = self.components.policy
        self.folder.save_adapter(policy.state()["student"], policy.adapter_config())

    def emit(self, event: Mapping[str, Any], groups: Sequence[RolloutGroup] = ()) -> None:
        """Append to the event log, call `on_event`, and pass it to the trackers; warn if a tracker fails."""
        written = self.log.emit(event)
        self.history.add(written)
        self.on_event(written, groups)
        self.warn(written["step"], self.trackers.send(written))

    def check_health(self, after: Literal["step", "eval"], step: int) -> None:
        """Emit a warning event for each health rule that finds something for the first time."""
        for rule, found in health.check(self.history, after).items():
            event = {"type": "warning", "step": step, "message": found.message, "rule": rule}
            self.emit({**event, "evidence": dict(found.evidence)})

    def warn(self, step: int, messages: Sequence[str]) -> None:
        """Emit one warning event for each message."""
        for message in messages:
            self.emit({"type": "warning", "step": step, "message": message})

    def close(self, step: int = 0) -> None:
        """Close trackers and event log; a second call does nothing."""
        try:
            self.warn(step, self.trackers.close())
        finally:
            self.log.close()


def optimizer_steps(state: Mapping[str, Arrays]) -> int:
    """Return how many optimizer steps are behind a policy's state."""
    return int(state["optimizer"].get("updates", 0))
