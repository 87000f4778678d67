"""Learning from a person: the model answers, the person says what was wrong, and the step is made at once.

SDPO with a person as the environment: the remark is the feedback in the self-teacher's context; an answer marked as
good is a demonstration, for itself too, since nobody else will show that it was right. There is no grader, no reward
and no held-out score. In a task of several turns the environment replies as in training, a remark is about the whole
episode and every turn learns from it; what the environment thinks of the end is shown and not learned from.

A lesson is written to `coaching.jsonl` before it is learned from, and a checkpoint after: what a kill leaves unlearned
is learned when the folder is opened again, so the weights are always a function of the start and of the file.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_mlx.backends.base import CONCURRENCY, SamplingParams
from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import ConfigError, DataError
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.core.storage import digest
from sdpo_mlx.rl.components import Components, versions
from sdpo_mlx.rl.diagnostics import pieces
from sdpo_mlx.rl.distillation import Batch, distillation_batch
from sdpo_mlx.rl.metrics import StepFacts, step_metrics
from sdpo_mlx.rl.optimization import LearnResult, learn, learning_rate
from sdpo_mlx.rl.rollouts import rollout_seeds, sample
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.events import EventLog, read_events
from sdpo_mlx.runs.folder import LESSONS, RunFolder
from sdpo_mlx.runs.rollout_records import records
from sdpo_mlx.runs.targets import is_run, target_config
from sdpo_mlx.training.lessons import Lesson, lesson_from
from sdpo_mlx.training.model_card import Base, CardFacts, coached, lessons_again, model_card
from sdpo_mlx.types import Problem, Rollout, RolloutGroup

FILE = LESSONS
OVERRIDE = "coach the same model or run with the same settings, or choose another --out"
# What coaching sets for a model or a run, unless told otherwise: remarks must count, whatever the run learned from.
DEFAULTS = (
    "objective.kind=sdpo",
    "objective.route=none",
    "objective.question_weight=uniform",
    "teacher.own_success=true",
    "teacher.feedback=true",
    "teacher.feedback_only_without_demonstration=false",
    "train.schedule=constant",
    "train.warmup_steps=0",
    "rollout.group_size=1",
)
RATE = 0.4  # of the training rate: a step on one answer is noisier than one on a batch (docs/figures/sdft.json)
UNSCORED = (
    "None: a person judged, no grader. In the whole folder `sdpo eval .` measures one on the task it was coached on."
)
_ELSEWHERE = {"task", "sandbox", "judge"}  # sections that no step depends on once the answers are there


def is_coached(path: Path) -> bool:
    """Whether a folder holds lessons of ours."""
    return is_run(path) and (path / FILE).is_file()


def coaching_config(target: str, sets: Sequence[str], flags: Mapping[str, Any]) -> Config:
    """The settings of a coached folder, or a target's with what coaching sets for it; what was given wins."""
    if is_coached(Path(target)):
        return target_config(target, None, sets, flags)
    rate = target_config(target, None, sets, flags).train.learning_rate
    return target_config(target, None, [*DEFAULTS, f"train.learning_rate={RATE * rate:g}", *sets], flags)


class Coaching:
    """A model being coached, and the folder that remembers it; `step` counts lessons."""

    def __init__(self, setup: Components, folder: RunFolder, *, itself: bool = False, origin: str = "") -> None:
        """Open a folder: a new one begins with the student as it stands, another goes on where it was.

        `itself` says that the student came from this folder, `origin` names the run that it came from.
        Raises ConfigError where the folder is something else, or was begun with other settings or another adapter.
        """
        if folder.events.exists() and not (folder.path / FILE).exists():
            what, fix = "a training run lies here", "choose another --out"
            raise ConfigError(what, where=str(folder.path), fix=fix)
        self.setup, self.folder, self.step, self.generations = setup, folder, 0, 0
        self.lessons, self.log = EventLog(folder.path / FILE), EventLog(folder.events)
        start = fingerprint(setup.policy.state()["student"])
        wanted = self._identity() if itself else {**self._identity(), "start": start}
        loaded = checkpoint.load(folder.checkpoints, expect=wanted, override=OVERRIDE)
        self.start = loaded.meta["start"] if loaded else start
        self.origin = loaded.meta.get("origin", "") if loaded else origin
        self.said = Counter[str]()
        if loaded is None:
            self._begin()
        else:
            setup.policy.load_state(loaded.state)
            self.step, self.generations = loaded.step, int(loaded.meta["generations"])
            for row in self._rows()[: self.step]:
                self.said.update(_said(row))
            self.log.rewind(self.step)
        self.caught_up = self._catch_up()

    def close(self) -> None:
        """Close the folder's files."""
        self.lessons.close()
        self.log.close()

    def ask(self, problem: Problem, seeds: Sequence[int] | None = None) -> tuple[Rollout, ...]:
        """Answers to a problem, `rollout.group_size` of them or one a seed; none where the prompt does not fit."""
        chat, policy, sampling = self.setup.chat, self.setup.policy, self._sampling()
        seeds = self._seeds(problem) if seeds is None else seeds
        prompt = chat.render(problem.messages, tools=problem.tools)
        if prompt.size > policy.info.context_length - sampling.max_tokens:
            return ()
        made = {index: found for _, index, found in policy.generate([prompt], sampling, [seeds])}
        return tuple(
            Rollout(prompt, g.ids_T, g.logps_T, g.finish, seed, chat.decode(g.ids_T))
            for seed, g in zip(seeds, (made[index] for index in range(len(seeds))), strict=True)
        )

    def play(self, problem: Problem, seeds: Sequence[int] | None = None) -> RolloutGroup | None:
        """Episodes against the task's environment, as many as `ask` gives answers, with its own verdicts.

        None where the prompt does not fit.
        """
        setup, seeds = self.setup, self._seeds(problem) if seeds is None else seeds
        found = sample(setup.policy, setup.task, setup.chat, [problem], self._sampling(), [seeds])
        return found.groups[0] if found.groups else None

    def _seeds(self, problem: Problem) -> Sequence[int]:
        cfg = self.setup.cfg
        return rollout_seeds("coach", cfg.train.seed, self.step, [problem], cfg.rollout.group_size)[0]

    def _sampling(self) -> SamplingParams:
        rollout = self.setup.cfg.rollout
        at_once = self.setup.cfg.rollout.concurrency or CONCURRENCY
        return SamplingParams(rollout.max_tokens, rollout.temperature, rollout.top_p, self.setup.chat.eos_ids, at_once)

    def teach(self, lesson: Lesson) -> LearnResult:
        """Write a lesson down, learn from it, save; nothing moves where nothing was said."""
        row = lesson.row(self.setup.chat.tokenizer_hash)
        self.lessons.emit({"type": "lesson", "step": self.step + 1, **row})
        self.lessons.sync()
        return self._learn(lesson)

    def replay(self, lessons: Sequence[Lesson]) -> Iterator[tuple[Lesson, LearnResult]]:
        """Make the same steps again; a folder that has made the first of them already goes on with the rest.

        Raises DataError where the folder has made others.
        """
        tokenizer = self.setup.chat.tokenizer_hash
        made = [_bare(row) for row in self._rows()]
        if made != [each.row(tokenizer) for each in lessons[: len(made)]]:
            fix = "choose another --out"
            raise DataError("other lessons were learned here already", where=str(self.folder.path), fix=fix)
        for lesson in lessons[len(made) :]:
            yield lesson, self.teach(lesson)

    def _begin(self) -> None:
        policy = self.setup.policy
        # The adapter that is coached is its own first teacher: the base's would pull it back.
        state = policy.state()
        policy.load_state({**state, "teacher": state["student"]})
        self.log.rewind(-1)
        self.log.emit({"type": "run_started", "step": 0, "config": self.setup.requested.model_dump(mode="json")})
        self.folder.write_config(self.setup.requested)
        self._save()

    def _catch_up(self) -> int:
        """Learn what was written down and not learned any more; how many lessons that were."""
        chat, vocab = self.setup.chat, self.setup.policy.info.vocab_size
        where = str(self.folder.path / FILE)
        late = [lesson_from(row, f"{where}:{n}", chat, vocab) for n, row in enumerate(self._rows(), 1) if n > self.step]
        for lesson in late:
            self._learn(lesson)
        return len(late)

    def _rows(self) -> list[dict[str, Any]]:
        return [row for row in read_events(self.folder.path / FILE) if row.get("type") == "lesson"]

    def _learn(self, lesson: Lesson) -> LearnResult:
        cfg, policy, begun = self.setup.cfg, self.setup.policy, time.perf_counter()
        groups = [lesson.group] if lesson.group else []
        batch = distillation_batch(
            groups,
            self.setup.chat,
            cfg.teacher,
            cfg.objective,
            context_length=policy.info.context_length,
            seed=derive(cfg.train.seed, self.step),
        )
        learned = learn(policy, batch.samples, cfg, self.step, lambda: False)
        self.step, self.generations = self.step + 1, self.generations + len(lesson.rollouts)
        self.said.update(_said(lesson.row("")))
        self._tell(lesson, batch, learned, time.perf_counter() - begun)
        self._save()
        return learned

    def _tell(self, lesson: Lesson, batch: Batch, learned: LearnResult, seconds: float) -> None:
        groups = [lesson.group] if lesson.group else []
        facts = StepFacts(
            learning_rate=learning_rate(self.step - 1, self.setup.cfg.train),
            generations=self.generations,
            generate_seconds=0.0,
            grade_seconds=0.0,
            learn_seconds=seconds,
            total_seconds=seconds,
            memory=self.setup.policy.memory(),
        )
        metrics = step_metrics(groups, batch.samples, batch.contexts.values(), batch.skips, learned.update, facts)
        self.log.emit({"type": "step", "step": self.step, **metrics})
        if self.setup.cfg.log.samples:
            kept = records(groups, batch, learned, lambda _, turn: {"pieces": pieces(self.setup.chat, turn.ids_T)})
            self.folder.write_rollouts(self.step, kept)

    def _save(self) -> None:
        """The student as adapter, and all that going on needs."""
        policy = self.setup.policy
        state = policy.state()
        self.log.sync()
        kept = {"start": self.start, "origin": self.origin, "generations": self.generations}
        checkpoint.save(self.folder.checkpoints, self.step, state, {**self._identity(), **kept})
        self.folder.save_adapter(state["student"], policy.adapter_config())
        self.folder.write_card(self._card())

    def _card(self) -> str:
        setup, said = self.setup, self.said
        base = Base.of(setup.model)
        facts = CardFacts(
            name=self.folder.path.resolve().name,
            base=base,
            description=coached(self.origin, self.step, said["remarks"], said["good"]),
            unscored=UNSCORED,
            versions=versions(),
            again=lessons_again(base, self.origin, FILE),
        )
        return model_card(facts, setup.requested)

    def _identity(self) -> dict[str, Any]:
        identity = self.setup.identity()
        config = {name: part for name, part in identity["config"].items() if name not in _ELSEWHERE}
        return {**identity, "config": config}


def _said(row: Mapping[str, Any]) -> dict[str, int]:
    """How many remarks and marks a lesson holds; a row that a hand has spoiled counts as far as it can be read."""
    answers = [answer for answer in row.get("answers") or () if isinstance(answer, Mapping)]
    remarks, good = ([bool(answer.get(name)) for answer in answers] for name in ("feedback", "success"))
    return {"remarks": sum(remarks), "good": sum(good)}


def fingerprint(arrays: Mapping[str, Any]) -> str:
    """SHA-256 of an adapter's arrays under their names."""
    return digest(b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays)))


def _bare(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("type", "time", "step")}
