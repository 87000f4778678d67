"""Scores before and after training: the untouched model, the best adapter, and what the adapter forgot.

Both scores use seeds of their own, so that the score which chose the best adapter does not flatter it. They are `eval`
events with `"final": true`, so that a resumed run reads them instead of sampling again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_mlx.core.seeding import derive
from sdpo_mlx.core.statistics import Interval, paired
from sdpo_mlx.evaluation.forgetting import (
    Forgetting,
    Reference,
    forgetting,
    load_reference,
    reference,
    save_reference,
)
from sdpo_mlx.rl.components import Components, versions
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.training.model_card import Base, CardFacts, Result, model_card, trained
from sdpo_mlx.training.session import TrainingSession, TrainState

GENERAL_PROMPTS = "general prompts, to measure forgetting"
NAN = float("nan")


@dataclass(frozen=True)
class FinalScore:
    """One final score, and the rewards behind it by problem."""

    result: Result
    rewards: Mapping[str, tuple[float, ...]]

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> FinalScore:
        """Read it from its `eval` event."""
        rewards = {name: tuple(values) for name, values in event["rewards"].items()}
        samples = max(map(len, rewards.values()), default=0)
        # a bootstrap over fewer than two problems has no interval; JSON holds its ends as null
        low, high = (NAN if event[end] is None else event[end] for end in ("low", "high"))
        return cls(Result(event["score"], low, high, len(rewards), samples), rewards)


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended; `difference` is after minus before, paired by problem (NaN if one is missing)."""

    state: TrainState
    before: FinalScore | None
    after: FinalScore | None
    difference: float
    interval: Interval
    forgetting: Forgetting


def before_training(run: TrainingSession, state: TrainState) -> FinalScore | None:
    """Return the untouched model's score: from the event log, or sampled at step 0.

    None for a run resumed with another `eval` section: its student is no longer untouched.
    """
    found = _recorded(run, adapter="none", adapter_step=0)
    if found is not None or state.step > 0:
        return found
    return _scored(run, step=0, adapter="none", adapter_step=0)


def forgetting_reference(run: TrainingSession, state: TrainState) -> Reference | None:
    """Return the untouched model's rollouts on general prompts: from the folder, or sampled at step 0.

    None for a run that an earlier version began without them.
    """
    components, path = run.components, run.folder.forgetting
    identity = {name: components.identity()[name] for name in ("base", "tokenizer")}
    identity["thinking"] = run.cfg.model.thinking
    found = load_reference(path, identity)
    if found is None and state.step == 0:
        on_progress = run.start_task(GENERAL_PROMPTS)
        found = reference(components.policy, components.chat, run.interrupted, on_progress)
        save_reference(path, found, identity)
    if found is not None and not any(_events(run, "forgetting", adapter="none", adapter_step=0)):
        unchanged = Forgetting(0.0, 0.0, found.text, found.text)
        run.emit({"type": "forgetting", "step": 0, "adapter": "none", "adapter_step": 0, **unchanged.event()})
    return found


def finish(
    run: TrainingSession, state: TrainState, before: FinalScore | None, reference: Reference | None
) -> TrainingResult:
    """Score the best adapter, measure forgetting, and write the last event and the model card.

    The student is left with the best adapter.
    """
    arrays, _ = run.folder.load_adapter()
    run.components.policy.load_student(arrays)
    best: dict[str, Any] = {"adapter": "best", "adapter_step": state.best_step}
    after = _recorded(run, **best) or _scored(run, step=state.step, **best)
    forgot = _forgetting(run, state, reference, best)
    result = TrainingResult(state, before, after, *_difference(before, after, run.cfg.train.seed), forgot)
    run.emit({"type": "run_finished", "step": state.step, "best_step": state.best_step, **_summary(result)})
    run.folder.write_card(model_card(card_facts(run.components, run.folder, result), run.components.requested))
    return result


def card_facts(components: Components, folder: RunFolder, result: TrainingResult) -> CardFacts:
    """Return the facts that the model card states about this run."""
    state = result.state
    return CardFacts(
        name=folder.path.resolve().name,
        base=Base.of(components.model),
        description=trained(components.cfg, state.step, state.generations, components.sandbox),
        before=result.before.result if result.before else None,
        after=result.after.result if result.after else None,
        versions=versions(),
        forgetting=result.forgetting,
    )


def _forgetting(
    run: TrainingSession, state: TrainState, reference: Reference | None, best: Mapping[str, Any]
) -> Forgetting:
    for event in _events(run, "forgetting", **best):
        return Forgetting.of(event)
    run.start_task(GENERAL_PROMPTS)
    found = forgetting(run.components.policy, run.components.chat, reference)
    run.emit({"type": "forgetting", "step": state.step, **best, **found.event()})
    return found


def _recorded(run: TrainingSession, **fields: Any) -> FinalScore | None:
    for event in _events(run, "eval", final=True, sampling=_sampling(run), **fields):
        return FinalScore.of(event)
    return None


def _events(run: TrainingSession, kind: str, **fields: Any) -> Iterator[dict[str, Any]]:
    for event in read_events(run.folder.events):
        if event.get("type") == kind and all(event.get(name) == value for name, value in fields.items()):
            yield event


def _scored(run: TrainingSession, *, step: int, adapter: str, adapter_step: int) -> FinalScore | None:
    found = run.score("final")
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
    """Return what must be equal for two final scores to be comparable."""
    return run.cfg.eval.model_dump(mode="json")


def _difference(before: FinalScore | None, after: FinalScore | None, seed: int) -> tuple[float, Interval]:
    if before is None or after is None:
        return NAN, Interval(NAN, NAN)
    shared = [name for name in before.rewards if name in after.rewards]
    first, second = ([score.rewards[name] for name in shared] for score in (before, after))
    return paired(first, second, seed=derive("paired", seed))


def _summary(result: TrainingResult) -> dict[str, Any]:
    return {
        "generations/total": result.state.generations,
        "score/before": result.before.result.score if result.before else None,
        "score/after": result.after.result.score if result.after else None,
        "difference": result.difference,
        "difference/low": result.interval.low,
        "difference/high": result.interval.high,
        **result.forgetting.event(),
    }
