"""Interactive training from human feedback: the model samples, a person comments, one step is made at once.

SDPO with a person as the environment: the comment is the feedback in the self-teacher's context; a rollout marked as
good is a demonstration, for itself too, since nothing else shows that it was right. There is no grader, no reward and
no held-out score. In a task of several turns the environment replies as in training, a comment is about the whole
episode and every turn learns from it; the environment's own grade is shown and not learned from.

A lesson is written to `coaching.jsonl` before the step, and a checkpoint after it: a lesson that a kill left without
its step is learned when the folder is opened again, so the weights are always a function of the start and of the file.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import ConfigError, DataError
from sdpo_mlx.core.storage import digest
from sdpo_mlx.rl.components import Components
from sdpo_mlx.rl.metrics import StepFacts, step_metrics
from sdpo_mlx.rl.optimization import LearnResult, learn, learning_rate
from sdpo_mlx.rl.rollouts import rollout_seeds, sample, to_rollout
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.events import EventLog, read_events
from sdpo_mlx.runs.folder import LESSONS, RunFolder
from sdpo_mlx.runs.rollout_records import records
from sdpo_mlx.runs.targets import is_run, target_config
from sdpo_mlx.training.lessons import Lesson, lesson_from
from sdpo_mlx.training.model_card import Base, CardFacts, coached, lessons_again, model_card
from sdpo_mlx.types import Problem, Rollout, RolloutGroup

OVERRIDE = "coach the same model or run with the same settings, or choose another --out"
# The defaults of coaching: feedback must count, whatever the model or run was trained with.
DEFAULTS = (
    "objective.kind=sdpo",
    "objective.route=none",
    "objective.question_weight=uniform",
    "teacher.own_success=true",
    "teacher.all_correct=true",
    "teacher.feedback=true",
    "teacher.feedback_only_without_demonstration=false",
    "train.schedule=constant",
    "train.warmup_steps=0",
    "rollout.group_size=1",
)
RATE = 0.4  # of the training rate: a step on one rollout is noisier than one on a batch (docs/figures/sdft.json)
UNSCORED = (
    "None: a person judged, no grader. In the whole folder `sdpo eval .` measures one on the task it was coached on."
)
_NOT_IN_IDENTITY = {"task", "sandbox", "judge"}  # sections that no step depends on once the rollouts are sampled


def is_coached(path: Path) -> bool:
    """Return whether a folder was written by a coaching session."""
    return is_run(path) and (path / LESSONS).is_file()


def coaching_config(target: str, sets: Sequence[str], flags: Mapping[str, Any]) -> Config:
    """Return a coached folder's settings, or a target's with the defaults of coaching; `sets` and `flags` win."""
    if is_coached(Path(target)):
        return target_config(target, None, sets, flags)
    rate = target_config(target, None, sets, flags).train.learning_rate
    return target_config(target, None, [*DEFAULTS, f"train.learning_rate={RATE * rate:g}", *sets], flags)


class Coaching:
    """A model in coaching and its folder; `step` counts lessons."""

    def __init__(self, components: Components, folder: RunFolder, *, itself: bool = False, origin: str = "") -> None:
        """Start a new folder with the student as it is, or resume one.

        `itself` says that the student came from this folder, `origin` names the run that it came from.
        Raises ConfigError if the folder is something else, or was started with other settings or another adapter.
        """
        if folder.events.exists() and not (folder.path / LESSONS).exists():
            what, fix = "the folder contains a training run", "choose another --out"
            raise ConfigError(what, where=str(folder.path), fix=fix)
        self.components, self.folder, self.step, self.generations = components, folder, 0, 0
        self.lessons, self.events = EventLog(folder.path / LESSONS), EventLog(folder.events)
        start = fingerprint(components.policy.state()["student"])
        expected = self._identity() if itself else {**self._identity(), "start": start}
        loaded = checkpoint.load(folder.checkpoints, expect=expected, override=OVERRIDE)
        self.start = loaded.meta["start"] if loaded else start
        self.origin = loaded.meta.get("origin", "") if loaded else origin
        self.counts = Counter[str]()
        if loaded is None:
            components.start_from_student()
            requested = components.requested
            self.events.rewind(-1)
            self.events.emit({"type": "run_started", "step": 0, "config": requested.model_dump(mode="json")})
            self.folder.write_config(requested)
            self._save()
        else:
            components.policy.load_state(loaded.state)
            self.step, self.generations = loaded.step, int(loaded.meta["generations"])
            for row in self._rows()[: self.step]:
                self.counts.update(_feedback_counts(row))
            self.events.rewind(self.step)
        # Lessons stored before a kill, without their step.
        chat, vocab_size, path = components.chat, components.policy.info.vocab_size, folder.path / LESSONS
        rows = list(enumerate(self._rows(), 1))[self.step :]
        late = [lesson_from(row, f"{path}:{number}", chat, vocab_size) for number, row in rows]
        for lesson in late:
            self._train(lesson)
        self.caught_up = len(late)

    def close(self) -> None:
        """Close the folder's files."""
        self.lessons.close()
        self.events.close()

    def sample(self, problem: Problem, seeds: Sequence[int] | None = None) -> tuple[Rollout, ...]:
        """Sample `rollout.group_size` rollouts, or one per seed; none if the prompt does not fit."""
        chat, policy, sampling = self.components.chat, self.components.policy, self.components.sampling
        seeds = self._seeds(problem) if seeds is None else seeds
        prompt = chat.render(problem.messages, tools=problem.tools)
        if prompt.size > policy.info.context_length - sampling.max_tokens:
            return ()
        found = {index: generation for _, index, generation in policy.generate([prompt], sampling, [seeds])}
        return tuple(to_rollout(chat, found[index], prompt, seed) for index, seed in enumerate(seeds))

    def sample_episodes(self, problem: Problem, seeds: Sequence[int] | None = None) -> RolloutGroup | None:
        """Sample and grade episodes against the task's environment; None if the prompt does not fit."""
        parts, seeds = self.components, self._seeds(problem) if seeds is None else seeds
        found = sample(parts.policy, parts.task, parts.chat, [problem], parts.sampling, [seeds])
        return found.groups[0] if found.groups else None

    def _seeds(self, problem: Problem) -> Sequence[int]:
        cfg = self.components.cfg
        return rollout_seeds("coach", cfg.train.seed, self.step, [problem], cfg.rollout.group_size)[0]

    def learn(self, lesson: Lesson) -> LearnResult:
        """Store a lesson, learn from it, save; without any feedback nothing changes."""
        row = lesson.row(self.components.chat.tokenizer_hash)
        self.lessons.emit({"type": "lesson", "step": self.step + 1, **row})
        self.lessons.sync()
        return self._train(lesson)

    def replay(self, lessons: Sequence[Lesson]) -> Iterator[tuple[Lesson, LearnResult]]:
        """Repeat the steps of these lessons; a folder that has made the first of them makes the rest.

        Raises DataError if the folder has made others.
        """
        tokenizer = self.components.chat.tokenizer_hash
        stored = [
            {name: value for name, value in row.items() if name not in ("type", "time", "step")} for row in self._rows()
        ]
        if stored != [each.row(tokenizer) for each in lessons[: len(stored)]]:
            fix = "choose another --out"
            raise DataError("the folder contains other lessons", where=str(self.folder.path), fix=fix)
        for lesson in lessons[len(stored) :]:
            yield lesson, self.learn(lesson)

    def _rows(self) -> list[dict[str, Any]]:
        return [row for row in read_events(self.folder.path / LESSONS) if row.get("type") == "lesson"]

    def _train(self, lesson: Lesson) -> LearnResult:
        cfg, chat, policy = self.components.cfg, self.components.chat, self.components.policy
        begun, groups = time.perf_counter(), [lesson.group] if lesson.group else []
        batch = self.components.distillation_batch(groups, self.step)
        learned = learn(policy, batch.samples, cfg, self.step, lambda: False)
        seconds = time.perf_counter() - begun
        self.step, self.generations = self.step + 1, self.generations + len(lesson.rollouts)
        self.counts.update(_feedback_counts(lesson.row("")))
        facts = StepFacts(
            learning_rate=learning_rate(self.step - 1, cfg.train),
            generations=self.generations,
            generate_seconds=0.0,
            grade_seconds=0.0,
            learn_seconds=seconds,
            total_seconds=seconds,
            memory=policy.memory(),
        )
        metrics = step_metrics(groups, batch.samples, batch.contexts.values(), batch.skips, learned.update, facts)
        self.events.emit({"type": "step", "step": self.step, **metrics})
        if cfg.log.samples:
            self.folder.write_rollouts(self.step, records(groups, batch, learned, chat))
        self._save()
        return learned

    def _save(self) -> None:
        """Write a checkpoint, the student as adapter, and the model card."""
        parts = self.components
        state = parts.policy.state()
        self.events.sync()
        progress = {"start": self.start, "origin": self.origin, "generations": self.generations}
        checkpoint.save(self.folder.checkpoints, self.step, state, {**self._identity(), **progress})
        self.folder.save_adapter(state["student"], parts.policy.adapter_config())
        base = Base.of(parts.model)
        facts = CardFacts(
            name=self.folder.path.resolve().name,
            base=base,
            description=coached(self.origin, self.step, self.counts["comments"], self.counts["good"]),
            unscored=UNSCORED,
            again=lessons_again(base, self.origin, LESSONS),
        )
        self.folder.write_card(model_card(facts, parts.requested))

    def _identity(self) -> dict[str, Any]:
        identity = self.components.identity()
        config = {name: part for name, part in identity["config"].items() if name not in _NOT_IN_IDENTITY}
        return {**identity, "config": config}


def _feedback_counts(row: Mapping[str, Any]) -> dict[str, int]:
    """Count the comments and the marks of a lesson; of a row edited by hand, as far as it is readable."""
    rollouts = [each for each in row.get("answers") or () if isinstance(each, Mapping)]
    comments, good = (sum(bool(each.get(name)) for each in rollouts) for name in ("feedback", "success"))
    return {"comments": comments, "good": good}


def fingerprint(arrays: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an adapter's arrays under their names."""
    return digest(b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays)))
