"""The whole course of a run: resume or start, score the untouched student, train, score the best adapter.

Both final scores use seeds of their own, so that the score which chose the best adapter does not flatter it.
They are `eval` events with `"final": true`, so that a resumed run finds them instead of sampling again.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_mlx.core import statistics
from sdpo_mlx.core.progress import StartTask, no_tasks
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.evaluation.evaluate import Evaluation
from sdpo_mlx.evaluation.forgetting import Forgetting, Reference, forgetting, load_reference, reference, save_reference
from sdpo_mlx.models.resolve import ResolvedModel
from sdpo_mlx.rl.components import Components, versions
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.trainer import train
from sdpo_mlx.training.model_card import Base, CardFacts, Result, model_card, trained
from sdpo_mlx.training.session import Observer, TrainingSession, TrainState

ORDINARY = "ordinary prompts, to measure forgetting"
LONGEST_PROMPT = 200  # characters of a problem that still make a readable example command


@dataclass(frozen=True)
class FinalScore:
    """One final score, and the rewards behind it by problem."""

    result: Result
    rewards: Mapping[str, tuple[float, ...]]

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> FinalScore:
        """Read it off its `eval` event."""
        rewards = {name: tuple(values) for name, values in event["rewards"].items()}
        samples = max(map(len, rewards.values()), default=0)
        # a bootstrap over fewer than two problems has no ends; JSON holds them as null
        low, high = (float("nan") if event[end] is None else event[end] for end in ("low", "high"))
        return cls(Result(event["score"], low, high, len(rewards), samples), rewards)


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended; `difference` is after minus before, paired by problem (NaN where one is missing)."""

    state: TrainState
    before: FinalScore | None
    after: FinalScore | None
    difference: float
    interval: statistics.Interval
    forgetting: Forgetting


def carry_out(
    setup: Components,
    folder: RunFolder,
    observe: Observer,
    interrupted: Callable[[], bool] = lambda: False,
    command: list[str] | None = None,
    doing: StartTask = no_tasks,
) -> TrainingResult:
    """Train in `folder` until the end, from wherever it stands, and leave a complete run folder.

    Raises KeyboardInterrupt with the state saved, and what `Run.resume` and `trainer.train` raise.
    """
    run = TrainingSession(setup, folder, observe, interrupted, doing)
    try:
        state = run.resume()
        # Not before: a refused change of settings must leave the old run's files alone.
        folder.write_manifest(setup.manifest(command or []))
        folder.write_config(setup.cfg)
        before, base = _before(run, state), _base(run, state)
        state = train(run, state)
        after = _after(run, state)
        forgot = _forgot(run, state, base)
        outcome = TrainingResult(state, before, after, *_difference(before, after, setup.cfg.train.seed), forgot)
        run.emit({"type": "run_finished", "step": state.step, "best_step": state.best_step, **_gain(outcome)})
        folder.write_card(model_card(card_facts(setup, folder, outcome), setup.cfg))
        return outcome
    finally:
        run.close()


def card_facts(setup: Components, folder: RunFolder, outcome: TrainingResult) -> CardFacts:
    """What the model card tells of this run."""
    state = outcome.state
    return CardFacts(
        name=folder.path.resolve().name,
        base=Base.of(setup.model),
        story=trained(setup.cfg, state.step, state.generations, setup.sandbox),
        before=outcome.before.result if outcome.before else None,
        after=outcome.after.result if outcome.after else None,
        versions=versions(),
        forgetting=outcome.forgetting,
    )


def base_name(model: ResolvedModel) -> str:
    """What other programs load the base by: its repository on the hub, else its folder."""
    return model.target.partition("@")[0] if model.source == "hub" else str(model.path)


def next_commands(setup: Components, out: Path) -> list[str]:
    """What to do with a finished run: see why it learned, talk to it, use it elsewhere."""
    problems = setup.task.problems("held_out") or setup.task.problems("train")
    prompt = problems[0].messages[-1]["content"].strip()
    fits = len(prompt) <= LONGEST_PROMPT and prompt.isprintable()
    run, base, asked = (
        shlex.quote(str(out)),
        shlex.quote(base_name(setup.model)),
        shlex.quote(prompt if fits else "..."),
    )
    first_steps = setup.cfg.model.name == "tiny" and setup.cfg.task.name.startswith("tiny")
    return [
        f"sdpo report {run}",
        f"sdpo chat {run} --compare",
        f"mlx_lm.generate --model {base} --adapter-path {run} --prompt {asked}",
        *(["sdpo train --model qwen --task code"] if first_steps else []),
    ]


def _before(run: TrainingSession, state: TrainState) -> FinalScore | None:
    """The untouched student's score: from the stream, or sampled at the very start.

    A run that goes on with another `eval` section has none: its student isn't untouched any more.
    """
    found = _recorded(run, adapter="none", adapter_step=0)
    if found is not None or state.step > 0:
        return found
    return _emitted(run, run.score("final"), step=0, adapter="none", adapter_step=0)


def _after(run: TrainingSession, state: TrainState) -> FinalScore | None:
    """The best adapter's score; the student is left with that adapter."""
    arrays, _ = run.folder.load_adapter()
    run.policy.load_student(arrays)
    found = _recorded(run, adapter="best", adapter_step=state.best_step)
    if found is not None:
        return found
    return _emitted(run, run.score("final"), step=state.step, adapter="best", adapter_step=state.best_step)


def _base(run: TrainingSession, state: TrainState) -> Reference | None:
    """What the untouched student says to ordinary prompts: kept in the folder, or sampled at the very start.

    A run that was begun before there was such a thing has none.
    """
    identity = {name: run.setup.identity()[name] for name in ("base", "tokenizer")}
    identity["thinking"] = run.cfg.model.thinking
    kept = load_reference(run.folder.forgetting, identity)
    if kept is None and state.step == 0:
        kept = reference(run.policy, run.chat, run.interrupted, run.doing(ORDINARY))
        save_reference(run.folder.forgetting, kept, identity)
    if kept is not None and not any(_measured(run, adapter="none", adapter_step=0)):
        _measure(run, Forgetting(0.0, 0.0, kept.text, kept.text), step=0, adapter="none", adapter_step=0)
    return kept


def _forgot(run: TrainingSession, state: TrainState, base: Reference | None) -> Forgetting:
    """What the best adapter, which the student holds now, has forgotten: from the stream, or measured."""
    for event in _measured(run, adapter="best", adapter_step=state.best_step):
        return Forgetting.of(event)
    run.doing(ORDINARY)
    found = forgetting(run.policy, run.chat, base)
    return _measure(run, found, step=state.step, adapter="best", adapter_step=state.best_step)


def _measured(run: TrainingSession, **wanted: Any) -> Iterator[dict[str, Any]]:
    for event in read_events(run.folder.events):
        if event.get("type") == "forgetting" and all(event.get(name) == value for name, value in wanted.items()):
            yield event


def _measure(run: TrainingSession, found: Forgetting, *, step: int, adapter: str, adapter_step: int) -> Forgetting:
    which = {"adapter": adapter, "adapter_step": adapter_step}
    run.emit({"type": "forgetting", "step": step, **which, **found.event()})
    return found


def _recorded(run: TrainingSession, *, adapter: str, adapter_step: int) -> FinalScore | None:
    wanted = {"final": True, "adapter": adapter, "adapter_step": adapter_step, "sampling": _sampling(run)}
    for event in read_events(run.folder.events):
        if event.get("type") == "eval" and all(event.get(name) == value for name, value in wanted.items()):
            return FinalScore.of(event)
    return None


def _emitted(
    run: TrainingSession, found: Evaluation, *, step: int, adapter: str, adapter_step: int
) -> FinalScore | None:
    if not found.problems:
        return None
    event = {
        "type": "eval",
        "step": step,
        **found.event(),
        "final": True,
        "adapter": adapter,
        "adapter_step": adapter_step,
        "sampling": _sampling(run),
        "rewards": {problem.id: list(problem.rewards) for problem in found.problems},
    }
    run.emit(event)
    return FinalScore.of(event)


def _sampling(run: TrainingSession) -> dict[str, Any]:
    """What has to be equal for two final scores to be comparable."""
    return run.cfg.eval.model_dump(mode="json")


def _difference(before: FinalScore | None, after: FinalScore | None, seed: int) -> tuple[float, statistics.Interval]:
    nothing = float("nan")
    if before is None or after is None:
        return nothing, statistics.Interval(nothing, nothing)
    shared = [name for name in before.rewards if name in after.rewards]
    first, second = ([score.rewards[name] for name in shared] for score in (before, after))
    return statistics.paired(first, second, seed=derive("paired", seed))


def _gain(outcome: TrainingResult) -> dict[str, Any]:
    return {
        "generations/total": outcome.state.generations,
        "score/before": outcome.before.result.score if outcome.before else None,
        "score/after": outcome.after.result.score if outcome.after else None,
        "difference": outcome.difference,
        "difference/low": outcome.interval.low,
        "difference/high": outcome.interval.high,
        **outcome.forgetting.event(),
    }
