"""Scores before and after training: the untouched model, the best adapter, and what the adapter forgot.

Both scores use seeds of their own, so that the score which chose the best adapter does not flatter it. They are `eval`
events with `"final": true`, so that a resumed run reads them instead of sampling again. The untouched model is scored
once: before training, as the evaluation of step 0, and as the best adapter if none was better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_mlx.core.statistics import Interval
from sdpo_mlx.evaluation.compare import Comparison, compare_rewards
from sdpo_mlx.evaluation.forgetting import (
    Forgetting,
    Reference,
    forgetting,
    load_reference,
    reference,
    save_reference,
)
from sdpo_mlx.models.adapter_folder import changes_nothing
from sdpo_mlx.rl.metrics import mean
from sdpo_mlx.runs.events import number, read_events
from sdpo_mlx.runs.pace import RECENT_STEPS
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
        success = number(event.get("pass@1"))
        return cls(
            Result(event["score"], low, high, len(rewards), samples, NAN if success is None else success), rewards
        )


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended; `comparison` is that of after with before, None if one is missing.

    `warnings` are the events of health rules, and what was done about a decline. `truncated` is the share of truncated
    rollouts in the last steps.
    """

    state: TrainState
    before: FinalScore | None
    after: FinalScore | None
    comparison: Comparison | None
    forgetting: Forgetting
    warnings: tuple[Mapping[str, Any], ...] = ()
    truncated: float = NAN

    @property
    def difference(self) -> float:
        """After minus before, paired by problem; NaN if one is missing."""
        return self.comparison.difference if self.comparison else NAN

    @property
    def interval(self) -> Interval:
        """The 95 % interval of `difference`."""
        return self.comparison.interval if self.comparison else Interval(NAN, NAN)

    @property
    def learned(self) -> bool:
        """Whether the held-out score rose by more than chance."""
        return self.comparison is not None and self.comparison.significant and self.difference > 0


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
        with run.phase("generate"):
            found = reference(components.policy, components.chat, run.interrupted, on_progress)
        save_reference(path, found, identity)
    if found is not None and not any(_events(run, "forgetting", adapter="none", adapter_step=0)):
        unchanged = Forgetting(0.0, 0.0, found.text, found.text)
        run.emit({"type": "forgetting", "step": 0, "adapter": "none", "adapter_step": 0, **unchanged.event()})
    return found


def finish(run: TrainingSession, state: TrainState, before: FinalScore | None) -> TrainingResult:
    """Score the best adapter, measure forgetting, and write the last event and the model card.

    The student is left with the best adapter.
    """
    arrays, _ = run.folder.load_adapter()
    run.components.policy.load_student(arrays)
    best: dict[str, Any] = {"adapter": "best", "adapter_step": state.best_step}
    after = _recorded(run, **best) or _scored(run, step=state.step, **best)
    recorded = next(_events(run, "forgetting", **best), None)
    if recorded is None:
        run.start_task(GENERAL_PROMPTS)
        with run.phase("learn"):
            forgot = forgetting(run.components.policy, run.components.chat, run.reference)
        run.emit({"type": "forgetting", "step": state.step, **best, **forgot.event()})
    else:
        forgot = Forgetting.of(recorded)
    comparison = None
    if before is not None and after is not None:
        comparison = compare_rewards(before.rewards, after.rewards, seed=run.cfg.train.seed)
    truncated = [value for step in _events(run, "step") if (value := number(step.get("length/truncated"))) is not None]
    warnings = tuple(event for event in read_events(run.folder.events) if event.get("rule"))
    result = TrainingResult(
        state, before, after, comparison, forgot, warnings, truncated=mean(truncated[-RECENT_STEPS:])
    )
    first_result, last_result = (score.result if score else None for score in (before, after))
    run.emit(
        {
            "type": "run_finished",
            "step": state.step,
            "best_step": state.best_step,
            "generations/total": state.generations,
            "score/before": first_result.score if first_result else None,
            "score/after": last_result.score if last_result else None,
            "difference": result.difference,
            "difference/low": result.interval.low,
            "difference/high": result.interval.high,
            **forgot.event(),
        }
    )
    components, name = run.components, run.folder.path.resolve().name
    description = trained(components.cfg, state.step, state.generations, components.sandbox)
    probed = next(_events(run, "probe"), {})
    facts = CardFacts(
        name,
        Base.of(components.model),
        description,
        before=first_result,
        after=last_result,
        forgetting=forgot,
        probe=str(probed.get("sentence", "")),
        warnings=[f"step {event['step']}: {event['message']}" for event in warnings],
        unchanged=changes_nothing(arrays),
    )
    run.folder.write_card(model_card(facts, components.requested))
    return result


def _recorded(run: TrainingSession, **fields: Any) -> FinalScore | None:
    for event in _events(run, "eval", final=True, sampling=run.cfg.eval.model_dump(mode="json"), **fields):
        return FinalScore.of(event)
    return None


def _events(run: TrainingSession, kind: str, **fields: Any) -> Iterator[dict[str, Any]]:
    for event in read_events(run.folder.events):
        if event.get("type") == kind and all(event.get(name) == value for name, value in fields.items()):
            yield event


def _scored(run: TrainingSession, *, step: int, adapter: str, adapter_step: int) -> FinalScore | None:
    which = {"adapter": adapter, "adapter_step": adapter_step}
    sampling = run.cfg.eval.model_dump(mode="json")  # final scores with others are not comparable
    known = (
        next(_events(run, "eval", final=True, sampling=sampling, adapter="none"), None) if not adapter_step else None
    )
    if known is not None:
        event = {**known, "step": step, **which}
    else:
        found = run.score("final") if adapter_step else run.score_untouched()
        if not found.problems:
            return None
        event = {
            "type": "eval",
            "step": step,
            **found.event(),
            "final": True,
            **which,
            "sampling": sampling,
            "rewards": found.rewards,
        }
    run.emit(event)
    return FinalScore.of(event)
