"""Conclude from a probe whether SDPO will learn, and which settings to use.

- `learns`: some context gives the self-teacher more success than the student has. Its interval must exclude 0 at
  95 % for all contexts together (with m of them each one at 1 - 0.05 / m), on enough problems that differ, and the
  context must not raise wrong tokens above right ones.
- `does not learn`: no context gains as much as `USEFUL`: every 95 % interval ends below it, on enough problems and
  rollouts of both.
- `undecided`: otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sdpo_mlx.config import Config
from sdpo_mlx.core import statistics
from sdpo_mlx.evaluation.probe import CONFIGURED, REFERENCE, ContextResult, Probe, most_gain

USEFUL = 0.10  # a smaller gain is none that a run would show
ENOUGH_PROBLEMS = 8
ENOUGH_ROLLOUTS = 29  # the fewest of which none succeeds by chance in at most 5 % of all cases, if USEFUL do
LITTLE_LEFT = 0.9  # success of a student that has little left to learn
ERROR = 0.05
TEACHER_SETTINGS = ("demonstration", "feedback", "feedback_only_without_demonstration", "include_attempt", "template")

Kind = Literal["learns", "does not learn", "undecided"]


@dataclass(frozen=True)
class ProbeVerdict:
    """The conclusion in one sentence, the settings it recommends, and the context that it rests on.

    `problems` is about how many problems would decide, None if it is decided or that cannot be estimated.
    """

    kind: Kind
    sentence: str
    settings: dict[str, Any]
    best: ContextResult | None
    problems: int | None = None


def judge(probe: Probe, cfg: Config) -> ProbeVerdict:
    """Apply the rules above."""
    helping = [result for result in probe.results if helps(result, len(probe.results))]
    if helping:
        chosen = recommended(helping)
        kind = "auto" if cfg.objective.kind == "grpo" else cfg.objective.kind
        return ProbeVerdict("learns", f"{figures(chosen)}: SDPO should learn", _settings(chosen, kind), chosen)
    best = most_gain(probe.results)
    if teaches_nothing(probe):
        return ProbeVerdict("does not learn", _nothing(probe, best), _settings(None, "grpo"), best)
    problems = problems_needed(best, len(probe.results)) if best else None
    more = f"about {problems} problems would decide" if problems else "more problems may decide"
    found = figures(best) if best else f"no context could be made of {_rollouts(probe)} rollouts"
    return ProbeVerdict("undecided", f"{found}: {more}", _settings(best, "auto"), best, problems)


def helps(result: ContextResult, tried: int) -> bool:
    """Return whether this context gains, with so many tried."""
    low, _ = result.gain_at(1 - ERROR / tried)[1]
    different = len(result.gain.won) + len(result.gain.lost)
    return low > 0 and different >= enough_different(tried) and not result.shift.interval.high < 0


def enough_different(tried: int) -> int:
    """Return how many problems must differ: with m of them, an exact sign-flip test gives no less than 2^(1-m)."""
    return 1 + math.ceil(math.log2(tried / ERROR))


def teaches_nothing(probe: Probe) -> bool:
    """Return whether every context gains less than `USEFUL`; always true without contexts, given enough rollouts."""
    enough = len(probe.student) >= ENOUGH_PROBLEMS and _rollouts(probe) >= ENOUGH_ROLLOUTS
    return enough and all(result.gain.interval.high < USEFUL for result in probe.results)


def problems_needed(result: ContextResult, tried: int) -> int | None:
    """Return about how many problems would show a gain of this size; None if nothing was gained."""
    gain, n, different = result.gain, len(result.pairs), len(result.gain.won) + len(result.gain.lost)
    if not different or gain.difference <= 0:
        return None
    return max(n + (gain.needed or 1), math.ceil(enough_different(tried) * n / different))


def recommended(helping: Sequence[ContextResult]) -> ContextResult:
    """Return the first context, the paper's if it helps, unless another's success is higher by more than chance.

    A context that shows the row's reference answer is recommended only if no other helps: it nearly always has the
    highest success, and a run would learn from the references instead of from its rollouts.
    """
    own = [result for result in helping if result.context.name != REFERENCE] or list(helping)
    best = own[0]
    for other in sorted(own[1:], key=lambda result: -result.gain.difference):
        first, second = ([[pair.second] for pair in each.pairs] for each in (best, other))
        low, _ = statistics.paired(first, second, seed=other.seed, confidence=1 - ERROR / len(own))[1]
        best = other if low > 0 else best
    return best


def figures(result: ContextResult) -> str:
    """Return in words what a context changes."""
    (low, high), name = result.gain.interval, result.context.name.replace("_", " ")
    interval = "" if math.isnan(low) else f", {100 * low:+.0f} to {100 * high:+.0f}"
    context = "its context" if result.context.name == CONFIGURED else f"{name} in template {result.context.template}"
    return (
        f"the self-teacher solves {100 * result.success:.0f} % where the student solves {100 * result.student:.0f} % "
        f"({context}, {len(result.with_context)} of {len(result.pairs)} problems; gain over all "
        f"{100 * result.gain.difference:+.0f} points{interval})"
    )


def event(probe: Probe, verdict: ProbeVerdict) -> dict[str, Any]:
    """Return the fields of a `probe` event; shares are of 1, shifts in nats."""
    student, (low, high) = probe.student_score
    fields = {
        "verdict": verdict.kind,
        "sentence": verdict.sentence,
        "n": len(probe.student),
        "success": student,
        "low": low,
        "high": high,
    }
    if (best := verdict.best) is None:
        return fields
    return fields | {
        "teacher/success": best.success,
        "teacher/student": best.student,
        "teacher/answers": best.answers,
        "difference": best.gain.difference,
        "difference/low": best.gain.interval.low,
        "difference/high": best.gain.interval.high,
        "shift/right": best.shift.right,
        "shift/wrong": best.shift.wrong,
    }


def _nothing(probe: Probe, best: ContextResult | None) -> str:
    student = probe.student_score[0]
    if student >= LITTLE_LEFT:
        return f"the student already solves {100 * student:.0f} %: little is left to learn"
    advice = "use --objective auto or grpo, a larger model, or feedback that states what is right"
    if best is None:
        return f"no rollout of {_rollouts(probe)} has a context, neither feedback nor a success to show: {advice}"
    return f"no context helps this model, {figures(best)}: {advice}"


def _rollouts(probe: Probe) -> int:
    return sum(map(len, probe.student.values()))


def _settings(result: ContextResult | None, objective: str) -> dict[str, Any]:
    teacher = {f"teacher.{name}": getattr(result.context.teacher, name) for name in TEACHER_SETTINGS} if result else {}
    return {"objective.kind": objective, **teacher}
