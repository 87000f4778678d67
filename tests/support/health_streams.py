"""Made-up event streams of runs that go wrong at a known step, and what the health rules find in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sdpo_mlx.training import health
from sdpo_mlx.training.history import History

EVAL_EVERY, PROBLEMS = 3, 32
HEALTHY: Mapping[str, float] = {
    "success/rate": 0.3,
    "feedback/rate": 0.7,
    "entropy": 0.5,
    "length/mean": 40.0,
    "length/truncated": 0.05,
    "leakage/rate": 0.0,
    "grad/norm": 0.02,
    "loss": 0.04,
}
TEACHER = {"teacher/success": 0.75, "teacher/student": 0.25, "teacher/answers": 16}


def stream(
    steps: int = 24, onset: int = 10, *, score: float = 0.6, shift: float = 0.0, rollouts: int = 64, **changed: Any
) -> list[dict[str, Any]]:
    """A run whose metrics change after step `onset`; `score` and `shift` are those of its evaluations from there on."""
    renamed = {name.replace("__", "/"): value for name, value in changed.items()}
    events = [evaluation(0, 0.6, 0.0)]
    for step in range(1, steps + 1):
        late = step > onset
        teacher = TEACHER if step % EVAL_EVERY == 1 else {}
        numbers = {
            **HEALTHY,
            **teacher,
            **{k: v for k, v in renamed.items() if late and (k in HEALTHY or k in teacher)},
        }
        events.append({"type": "step", "step": step, "generations/total": rollouts * step, **numbers})
        if step % EVAL_EVERY == 0:
            events.append(evaluation(step, score if late else 0.6, shift if late else 0.0))
    return events


def evaluation(step: int, score: float, shift: float = 0.0) -> dict[str, Any]:
    """A held-out evaluation: so many problems are solved, the first ones."""
    rewards = {str(at): [float(at < round(score * PROBLEMS))] for at in range(PROBLEMS)}
    exact = sum(row[0] for row in rewards.values()) / PROBLEMS
    divergence = {"forgetting/divergence": shift, "forgetting/divergence_error": 0.05}
    return {"type": "eval", "step": step, "score": exact, "rewards": rewards, **divergence}


def replayed(events: Iterable[Mapping[str, Any]], history: History | None = None) -> list[dict[str, Any]]:
    """The events with the warnings that a run would emit among them."""
    history, written = history or History(), list[dict[str, Any]]()

    def emit(event: Mapping[str, Any]) -> None:
        history.add(event)
        written.append(dict(event))

    for event in events:
        emit(event)
        for rule, found in health.check(history, event["type"]).items():
            numbers = {"message": found.message, "evidence": dict(found.evidence)}
            emit({"type": "warning", "step": event["step"], "rule": rule, **numbers})
    return written


def warnings(events: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Rule and step of each warning."""
    return [(event["rule"], event["step"]) for event in replayed(events) if event["type"] == "warning"]
