"""Test-time SDPO: one problem, attempt after attempt, until one succeeds or the budget ends.

Three methods spend the same attempts: `sdpo` learns from the feedback between two batches, `best-of-k` samples the
untouched model, `multi-turn` holds one conversation with all feedback. Before the end there is no success, so the
teacher's contexts hold feedback alone; without feedback SDPO has nothing to learn from and equals best-of-k.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from sdpo_mlx.backends.base import Update
from sdpo_mlx.config.templates import CLOSING_LINE
from sdpo_mlx.core.errors import ConfigError, DataError
from sdpo_mlx.core.progress import ProgressCallback, no_progress
from sdpo_mlx.rl.components import Components
from sdpo_mlx.rl.optimization import learn
from sdpo_mlx.rl.rollouts import ProgressPolicy, rollout_seeds, sample
from sdpo_mlx.runs.events import EventLog
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.teacher import history
from sdpo_mlx.training.model_card import Base, CardFacts, model_card, searched
from sdpo_mlx.types import Exchange, Feedback, Message, Problem, Rollout, RolloutGroup

Method = Literal["sdpo", "best-of-k", "multi-turn"]
METHODS: tuple[Method, ...] = get_args(Method)
WRONG = "This is not right."  # the reply in a conversation if there is no feedback text
UNSCORED = "None: it was made for one problem. In the whole folder `sdpo eval .` measures it on others of that task."


@dataclass(frozen=True)
class Budget:
    """How long to search: attempts, and seconds if they are limited; whichever ends first."""

    attempts: int
    seconds: float | None = None


@dataclass(frozen=True)
class Attempt:
    """One graded rollout; `number` counts from 1 in the order of sampling."""

    number: int
    rollout: Rollout
    feedback: Feedback


@dataclass(frozen=True)
class AttemptBatch:
    """One batch of attempts, and the update before it (None if nothing was learned)."""

    attempts: tuple[Attempt, ...]
    update: Update | None


@dataclass(frozen=True)
class Search:
    """How a search ended: `solved` is the number of the first success, `attempts` how many were sampled."""

    solved: int | None
    best: Attempt
    attempts: int
    seconds: float


def solve(
    components: Components,
    problem: Problem,
    method: Method,
    budget: Budget,
    on_batch: Callable[[AttemptBatch], None] = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
    on_progress: ProgressCallback = no_progress,
) -> Search:
    """Sample attempts until the first success or the end of the budget; the policy keeps its last weights.

    After a success the student holds the weights that sampled it. Everything follows from `train.seed`, the problem
    and the method. `on_progress` receives attempts of the budget. Raises KeyboardInterrupt if `interrupted()` returns
    True, DataError if the prompt leaves no room for a rollout.
    """
    searcher, begun = searcher_of(components, problem, method, interrupted), time.monotonic()
    best: Attempt | None = None
    count = step = 0
    while count < budget.attempts:
        if count and budget.seconds is not None and time.monotonic() - begun >= budget.seconds:
            break
        size = min(components.cfg.rollout.group_size, budget.attempts - count)
        searcher.left = budget.attempts - count
        group = searcher.next_group(step, size, lambda n, _, done=count: on_progress(done + n, budget.attempts))  # type: ignore[misc]
        graded = zip(group.rollouts, group.feedback, strict=True)
        attempts = tuple(Attempt(count + n, *each) for n, each in enumerate(graded, 1))
        on_batch(AttemptBatch(attempts, searcher.update))
        count, step = count + len(attempts), step + 1
        # Of equal attempts `max` keeps the earliest.
        best = max((best, *attempts) if best else attempts, key=lambda a: (a.feedback.success, a.feedback.reward))
        if best.feedback.success:
            break
    if best is None:
        raise ValueError("a budget has at least one attempt")
    return Search(best.number if best.feedback.success else None, best, count, time.monotonic() - begun)


def searcher_of(components: Components, problem: Problem, method: str, interrupted: Callable[[], bool]) -> BestOfK:
    """Return the searcher of a method; raises ConfigError for an unknown name."""
    kinds: dict[str, type[BestOfK]] = {"sdpo": SelfDistillation, "best-of-k": BestOfK, "multi-turn": MultiTurn}
    if method not in kinds:
        raise ConfigError(f"there is no method {method!r}", where="--method", fix=f"choose one of {', '.join(kinds)}")
    return kinds[method](components, problem, interrupted)


@dataclass
class BestOfK:
    """Sample the same prompt again and again; `update` is what was learned since the group before."""

    components: Components
    problem: Problem
    interrupted: Callable[[], bool]
    update: Update | None = None
    left: int = 0  # attempts of the budget that are left
    ahead: deque[RolloutGroup] = field(default_factory=deque)

    def next_group(self, step: int, size: int, on_progress: ProgressCallback = no_progress) -> RolloutGroup:
        """Return at most `size` further rollouts.

        Where a few rollouts take as long as many (`PolicyInfo.together`), those of the next steps are sampled with
        them: the same ones up to rounding, since each depends on its own seed alone.
        """
        if not self.ahead:
            steps = range(step, step + max(1, min(self.components.policy.info.together, self.left) // size))
            found = self.sample(self.problem, steps, size, on_progress)
            cuts = [slice(start, start + size) for start in range(0, len(found.rollouts), size)]
            self.ahead.extend(replace(found, rollouts=found.rollouts[c], feedback=found.feedback[c]) for c in cuts)
        group = self.ahead.popleft()
        return replace(group, rollouts=group.rollouts[:size], feedback=group.feedback[:size])

    def sample(self, problem: Problem, steps: Sequence[int], size: int, on_progress: ProgressCallback) -> RolloutGroup:
        """Sample and grade `size` rollouts of this problem for each step; DataError if its prompt is too long."""
        parts, seed = self.components, self.components.cfg.train.seed
        seeds = [[each for step in steps for each in rollout_seeds("solve", seed, step, [problem], size)[0]]]
        policy = ProgressPolicy(parts.policy, lambda: on_progress)
        found = sample(policy, parts.task, parts.chat, [problem], parts.sampling, seeds, self.interrupted)
        if not found.groups:
            fix = "lower rollout.max_tokens, or choose a model with a longer context"
            raise DataError("the prompt leaves no room for a rollout", where=problem.id, fix=fix)
        return found.groups[0]


@dataclass
class SelfDistillation(BestOfK):
    """SDPO: before the next batch, one step on the last one with its feedback."""

    last: RolloutGroup | None = None

    def next_group(self, step: int, size: int, on_progress: ProgressCallback = no_progress) -> RolloutGroup:
        """Learn from the last group, then sample the next."""
        if self.last is not None:
            parts, cfg = self.components, self.components.cfg
            batch = parts.distillation_batch([self.last], step - 1)
            self.update = learn(parts.policy, batch.samples, cfg, step - 1, self.interrupted).update
        self.last = self.sample(self.problem, [step], size, on_progress)
        return self.last


@dataclass
class MultiTurn(BestOfK):
    """One rollout at a time, each after all earlier ones and their feedback.

    If the conversation outgrows the model's context, its oldest exchanges are dropped.
    """

    exchanges: list[tuple[Message, ...]] = field(default_factory=list)

    def next_group(self, step: int, size: int, on_progress: ProgressCallback = no_progress) -> RolloutGroup:  # noqa: ARG002 - one at a time
        """Sample one rollout after the conversation so far."""
        parts, problem = self.components, self.problem
        room = parts.policy.info.context_length - parts.cfg.rollout.max_tokens
        while self.exchanges:
            messages = (*self.problem.messages, *(message for exchange in self.exchanges for message in exchange))
            if parts.chat.render(messages, tools=problem.tools).size <= room:
                problem = replace(problem, messages=messages)
                break
            del self.exchanges[0]
        group = self.sample(problem, [step], 1, on_progress)
        rollout, feedback = group.rollouts[0], group.feedback[0]
        reply = f"{feedback.text.strip() or WRONG}\n\n{CLOSING_LINE}"
        self.exchanges.append(history((*rollout.earlier, Exchange(replace(rollout, earlier=()), reply))))
        return group


def check_output(folder: Path) -> None:
    """Raise ConfigError, before anything is sampled, if `save_search` cannot or must not write here."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError("the output path is a file", where=str(folder), fix="choose another --keep")
    if (folder / "checkpoints").exists():
        raise ConfigError("the output folder already contains a run", where=str(folder), fix="choose another --keep")


def save_search(components: Components, folder: Path, problem: Problem, search: Search, command: Sequence[str]) -> None:
    """Save the student as a run folder, so that every command that takes a run takes it too.

    An earlier search saved there is replaced. `step` counts batches of attempts.
    """
    check_output(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run, batches = RunFolder(folder), -(-search.attempts // components.cfg.rollout.group_size)
    run.save_adapter(components.policy.state()["student"], components.policy.adapter_config())
    run.write_config(components.requested)
    run.write_manifest({**components.manifest(list(command)), "problem": problem.id, "solved": search.solved})
    description = searched(components.cfg, problem.id, search.attempts, search.solved)
    facts = CardFacts(folder.resolve().name, Base.of(components.model), description, unscored=UNSCORED)
    run.write_card(model_card(facts, components.requested))
    run.events.unlink(missing_ok=True)
    config = components.requested.model_dump(mode="json")
    config["train"]["steps"] = batches
    solved = 1.0 if search.solved else 0.0
    with EventLog(run.events) as log:
        log.emit({"type": "run_started", "step": 0, "config": config})
        log.emit({"type": "step", "step": batches, "generations/total": search.attempts, "groups/solved": solved})
        log.emit({"type": "run_finished", "step": batches})
