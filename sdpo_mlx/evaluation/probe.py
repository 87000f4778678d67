"""Measure before training whether the self-teacher knows more than the student.

Both have the same weights then: the self-teacher only reads more. For each kind of context it answers the problems
again, and its success is compared with the student's, paired by problem. Its contexts are made from some rollouts of
the student, the attempts, as in training; the student's success is that of other rollouts. The same ones would be
biased: a problem has feedback because its attempt failed, perhaps by bad luck alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from sdpo_mlx.config import ObjectiveConfig, TeacherConfig
from sdpo_mlx.config.templates import TEMPLATES, template_name
from sdpo_mlx.core import statistics
from sdpo_mlx.core.progress import StartTask, no_tasks
from sdpo_mlx.core.seeding import derive, rng
from sdpo_mlx.evaluation.compare import Comparison, Pair
from sdpo_mlx.evaluation.context_shift import Shift, ShiftMeter
from sdpo_mlx.rl import agreement
from sdpo_mlx.rl.components import Components
from sdpo_mlx.rl.distillation import Batch, distillation_batch
from sdpo_mlx.rl.metrics import mean
from sdpo_mlx.rl.rollouts import ProgressPolicy, Sampled, rollout_seeds, sample
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.types import Feedback, Message, Problem, RolloutGroup

REFERENCE = "reference"  # shows the row's reference answer
# The settings of section `teacher` that make each kind of context; None is the run's own choice of demonstration.
KINDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "demonstration_or_feedback": {"demonstration": None, "feedback": True},  # the paper's, and the default
        "feedback": {"demonstration": "off", "feedback": True},
        "demonstration": {"demonstration": None, "feedback": False},
        "demonstration_and_feedback": {
            "demonstration": None,
            "feedback": True,
            "feedback_only_without_demonstration": False,
        },
        "feedback_and_attempt": {"demonstration": "off", "feedback": True, "include_attempt": True},
        REFERENCE: {"demonstration": "dataset", "feedback": False},
    }
)
DEFAULTS: Mapping[str, Any] = MappingProxyType({"include_attempt": False, "feedback_only_without_demonstration": True})
CONFIGURED = "configured"  # the context of the run's own settings
Phase = Callable[[str], AbstractContextManager[Any]]
Successes = Mapping[str, Sequence[float]]  # of the graded rollouts, by problem


@dataclass(frozen=True)
class Context:
    """One kind of context in one template: what the self-teacher reads under these settings."""

    name: str
    teacher: TeacherConfig

    @property
    def template(self) -> str:
        """The name of the template."""
        return template_name(self.teacher.template)


def contexts(teacher: TeacherConfig, problems: Sequence[Problem]) -> list[Context]:
    """Return every kind of context in the settings' own template; `reference` only if a problem has one."""
    sibling = teacher.demonstration if teacher.demonstration in ("first", "random") else "first"
    found = []
    for name, settings in KINDS.items():
        if name == REFERENCE and not any(problem.reference for problem in problems):
            continue
        update = {**DEFAULTS, **settings, "demonstration": settings["demonstration"] or sibling}
        found.append(Context(name, teacher.model_copy(update=update)))
    return found


def in_other_templates(context: Context) -> list[Context]:
    """Return the context in each named template but its own."""
    return [
        replace(context, teacher=context.teacher.model_copy(update={"template": name}))
        for name in TEMPLATES
        if name != context.template
    ]


@dataclass(frozen=True)
class ContextResult:
    """What one context does: `pairs` are student and self-teacher on each problem.

    A problem without such a context has the student's success on both sides: training learns nothing there.
    """

    context: Context
    pairs: tuple[Pair, ...]
    with_context: frozenset[str]
    answers: int  # graded rollouts of the self-teacher
    tokens: int
    shift: Shift
    seed: int
    # Of the gains in reward, one for each problem, by what its context shows.
    signs: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @cached_property
    def gain(self) -> Comparison:
        """Self-teacher minus student over all problems, with its 95 % interval."""
        return Comparison(self.pairs, *self.gain_at(0.95), (0, 0, 0), self.seed)

    def gain_at(self, confidence: float) -> tuple[float, statistics.Interval]:
        """Return the gain with its interval at another confidence."""
        first, second = [[pair.first] for pair in self.pairs], [[pair.second] for pair in self.pairs]
        return statistics.paired(first, second, seed=self.seed, confidence=confidence)

    @property
    def success(self) -> float:
        """Success of the self-teacher on the problems that have this context."""
        return mean([pair.second for pair in self.pairs if pair.id in self.with_context])

    @property
    def student(self) -> float:
        """Success of the student on the same problems."""
        return mean([pair.first for pair in self.pairs if pair.id in self.with_context])


@dataclass(frozen=True)
class Probe:
    """All that was measured; `left_out` has the reason for each context that could not be made, or differs from none.

    `answers` and `tokens` count everything that was sampled for it.
    """

    student: Successes
    rollouts: int
    results: tuple[ContextResult, ...]
    left_out: Mapping[str, str]
    answers: int
    tokens: int
    seed: int

    @property
    def student_score(self) -> tuple[float, statistics.Interval]:
        """The student's success, with its 95 % interval clustered by problem."""
        rows = list(self.student.values())
        return statistics.average(rows), statistics.clustered(rows, seed=derive("bootstrap", self.seed))


def probe(
    parts: Components,
    problems: Sequence[Problem],
    rollouts: int,
    *,
    every_template: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
    start_task: StartTask = no_tasks,
) -> Probe:
    """Probe every kind of context, then the other templates with the best one, or `every_template` with each.

    `rollouts` per problem: of the attempts, of the student and of the self-teacher. Nothing changes in the policy.
    Raises KeyboardInterrupt when `interrupted()` turns true.
    """
    seed = parts.cfg.train.seed
    run = Prober(parts, rollouts, interrupted, start_task)
    attempts = run.sample("attempts of the student", problems, rollout_seeds("attempt", seed, 0, problems, rollouts))
    run.begin(attempts.groups)
    kinds = contexts(parts.cfg.teacher, problems)
    for context in kinds:
        run.try_context(context)
    best = most_gain(run.results)
    chosen = run.results if every_template or best is None else [best]
    for context in [result.context for result in chosen]:
        for other in in_other_templates(context):
            run.try_context(other)
    return run.finish()


def probe_groups(
    parts: Components,
    groups: Sequence[RolloutGroup],
    rollouts: int,
    interrupted: Callable[[], bool] = lambda: False,
    start_task: StartTask = no_tasks,
    phase: Phase = nullcontext,
) -> Probe:
    """Probe the context of the run's own settings, made from attempts that are there already.

    `phase` surrounds sampling (`generate`) and scoring (`learn`), as in a training step.
    """
    run = Prober(parts, rollouts, interrupted, start_task, phase)
    run.begin(groups)
    run.try_context(Context(CONFIGURED, parts.cfg.teacher))
    return run.finish()


def most_gain(results: Sequence[ContextResult]) -> ContextResult | None:
    """Return the context with the highest gain; one with references only if there is no other."""
    own = [result for result in results if result.context.name != REFERENCE] or results
    return max(own, key=lambda result: result.gain.difference, default=None)


def choose_problems(task: Task, count: int, seed: int) -> list[Problem]:
    """Return `count` training problems, in an order that follows from the seed; all of them if there are fewer."""
    problems = task.problems("train")
    order = rng("probe", seed).permutation(len(problems))
    return [problems[int(i)] for i in order[:count]]


@dataclass
class Prober:
    """A probe in progress: call `begin` with the attempts, `try_context` for each context, then `finish`."""

    parts: Components
    rollouts: int
    interrupted: Callable[[], bool] = lambda: False
    start_task: StartTask = no_tasks
    phase: Phase = nullcontext
    groups: Sequence[RolloutGroup] = ()
    student: dict[str, list[float]] = field(default_factory=dict)
    rewards: dict[str, list[float]] = field(default_factory=dict)  # of the student too
    results: list[ContextResult] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    answers: int = 0
    tokens: int = 0
    _seeds: dict[str, list[int]] = field(default_factory=dict)
    _prompts: dict[tuple[Any, ...], str] = field(default_factory=dict)  # the prompts of each context, and its name
    _shifts: ShiftMeter = field(init=False)

    def __post_init__(self) -> None:
        self._shifts = ShiftMeter(self.parts.policy, derive("paired", self.parts.cfg.train.seed))

    def sample(self, label: str, problems: Sequence[Problem], seeds: Sequence[Sequence[int]]) -> Sampled:
        """Sample and grade, and count it."""
        policy = ProgressPolicy(self.parts.policy, lambda: self.start_task(label))
        originals = {group.problem.id: group.problem for group in self.groups}
        task = _AsAsked(self.parts.task, originals) if originals else self.parts.task
        with self.phase("generate"):
            found = sample(policy, task, self.parts.chat, problems, self.parts.sampling, seeds, self.interrupted)
        rollouts = [rollout for group in found.groups for rollout in group.rollouts]
        self.answers += len(rollouts)
        self.tokens += sum(turn.ids_T.size for rollout in rollouts for turn in rollout.turns)
        return found

    def begin(self, groups: Sequence[RolloutGroup]) -> None:
        """Sample the student again on the problems of the attempts."""
        seed, problems = self.parts.cfg.train.seed, [group.problem for group in groups]
        rows = rollout_seeds("probe", seed, 0, problems, self.rollouts)
        self._seeds = {problem.id: row for problem, row in zip(problems, rows, strict=True)}
        self.groups = groups
        sampled = self.sample("rollouts of the student", problems, rows)
        self.student, self.rewards = _graded(sampled, "success"), _graded(sampled, "reward")

    def try_context(self, context: Context) -> None:
        """Let the self-teacher answer in one context; leave out what cannot be made or was measured already."""
        cfg, label = self.parts.cfg, f"{context.name} ({context.template})"
        seed, length = derive(cfg.train.seed, 0), self.parts.policy.info.context_length
        batch = distillation_batch(
            self.groups, self.parts.chat, context.teacher, ObjectiveConfig(), context_length=length, seed=seed
        )
        asked = self._asked(batch)
        prompts = tuple((problem.id, _plain(problem.messages)) for problem, _ in asked)
        if not asked or prompts in self._prompts:
            self.left_out[label] = f"the same contexts as {self._prompts[prompts]}" if asked else self._missing(context)
            return
        self._prompts[prompts] = label
        problems, seeds = [problem for problem, _ in asked], [row for _, row in asked]
        before = self.tokens
        found = self.sample(f"self-teacher, {label}", problems, seeds)
        teacher = _graded(found, "success")
        with self.phase("learn"):
            shift = self._shifts.measure(batch, self.groups)
        pairs = tuple(self._pair(group.problem, teacher) for group in self.groups if self.student.get(group.problem.id))
        self.results.append(
            ContextResult(
                context,
                pairs,
                frozenset(pair.id for pair in pairs if teacher.get(pair.id)),
                sum(map(len, teacher.values())),
                self.tokens - before,
                shift,
                derive("paired", cfg.train.seed),
                self._signs(batch, _graded(found, "reward")),
            )
        )

    def finish(self) -> Probe:
        """Return what was measured."""
        seed = self.parts.cfg.train.seed
        results, left_out = tuple(self.results), dict(self.left_out)
        return Probe(self.student, self.rollouts, results, left_out, self.answers, self.tokens, seed)

    def _asked(self, batch: Batch) -> list[tuple[Problem, list[int]]]:
        """Return each problem once for each of its different contexts; its seeds are shared out among them."""
        asked = []
        for problem in (group.problem for group in self.groups):
            count = len(problem.messages)  # a context of several turns goes on with what the student wrote
            made = [c.messages[:count] for (name, _), c in batch.contexts.items() if name == problem.id]
            different = _distinct(made)[: self.rollouts]
            for at, messages in enumerate(different):
                asked.append((replace(problem, messages=messages), self._seeds[problem.id][at :: len(different)]))
        return asked

    def _signs(self, batch: Batch, teacher: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        signs: dict[str, list[float]] = {kind: [] for kind in agreement.KINDS}
        for name, rewards in teacher.items():
            shown = {agreement.kind_of(batch, *place) for place in batch.contexts if place[0] == name}
            if rewards and self.rewards.get(name) and len(shown) == 1:
                signs[shown.pop()].append(float(np.sign(mean(rewards) - mean(self.rewards[name]))))
        return signs

    def _missing(self, context: Context) -> str:
        """Return why no rollout has this context."""
        wants_feedback, wants_sibling = context.teacher.feedback, context.teacher.demonstration in ("first", "random")
        feedback = [each for group in self.groups for each in group.feedback if not each.success]
        why = []
        if wants_feedback:
            said = any(each.text.strip() for each in feedback)
            why.append("its context does not fit" if said else "no rollout got feedback")
        if wants_sibling:
            why.append("no sibling of a rollout succeeded")
        return " and ".join(why) or "its context does not fit"

    def _pair(self, problem: Problem, teacher: Successes) -> Pair:
        first = mean(self.student[problem.id])
        return Pair(problem.id, problem.family, first, mean(teacher[problem.id]) if teacher.get(problem.id) else first)


class _AsAsked(Task):
    """Grade what was sampled from a teacher's messages as an answer to the problem itself."""

    def __init__(self, task: Task, problems: Mapping[str, Problem]) -> None:
        self.task, self.problems_by_id, self.max_turns = task, problems, task.max_turns

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        return self.task.grade(self.problems_by_id[problem.id], text, truncated=truncated)

    def grade_turns(self, problem: Problem, answers: Sequence[str], *, truncated: bool = False) -> Feedback:
        return self.task.grade_turns(self.problems_by_id[problem.id], answers, truncated=truncated)

    def reply(self, problem: Problem, answers: Sequence[str]) -> str | None:
        return self.task.reply(self.problems_by_id[problem.id], answers)


def _graded(sampled: Sampled, name: str) -> dict[str, list[float]]:
    """Return a field of the grades of each problem, all its groups together; rollouts without a grade are left out."""
    found: dict[str, list[float]] = {}
    for group in sampled.groups:
        graded = [float(getattr(each, name)) for each in group.feedback if each.kind != "grader_error"]
        found.setdefault(group.problem.id, []).extend(graded)
    return found


def _distinct(made: Sequence[tuple[Message, ...]]) -> list[tuple[Message, ...]]:
    return list({_plain(messages): messages for messages in made}.values())


def _plain(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in messages)
