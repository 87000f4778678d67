"""Health rules of a run: signs that it learns nothing, or unlearns, each with its numbers.

Every rule is a pure function of the recorded events (`training/history.py`). A rule warns once: the warning is an
event itself, so that a resumed run neither repeats nor forgets it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from sdpo_mlx.core import statistics
from sdpo_mlx.rl.metrics import TRUNCATED_MOST
from sdpo_mlx.runs.events import number
from sdpo_mlx.training.history import SUCCESS, WINDOW_ROLLOUTS, WINDOW_STEPS, History, Window

# Thresholds, each with its reason. Of 58 healthy runs of benchmarks/healthy_runs.py 9 warned, all by `held_out`.
BARREN_STEPS = 5  # a batch of hard problems without any signal is normal, five in a row are not
TEACHER_ENOUGH = 32  # rollouts of each: a self-teacher at 3 times a student's 10 % is not ahead by chance once in 36
TEACHER_NONE = 24  # without a single success: a self-teacher that succeeds 2 times in 10 does so once in 200
TEACHER_NEEDED = 0.5  # a student that succeeds so often need not be surpassed
ENTROPY_RISE, ENTROPY_NATS = 1.5, 0.1  # learning lowers entropy; so much more is not the mix of problems
ENTROPY_FALL = 3.0  # at the same success, answers have become alike: nothing is explored
LENGTH_RATIO = 2.0  # at the same success, longer or shorter answers are no better ones
SUCCESS_RISE, SUCCESS_ENOUGH = 0.1, 0.8  # a rise that is more than the mix of problems; a success that need not rise
SUCCESS_FALL = 0.3  # of 71 healthy runs the one that fell furthest lost 0.28 in three steps
TRUNCATED_RISE = 0.1  # share of rollouts, and SIGMAS
LEAKAGE_RISE = 0.05  # the untouched model has none, apart from chance
SIGMAS = 3.0  # a rise of a share in standard errors: rollouts of a problem are alike, so that 2 are too few
GRADIENT_FALL, LOSS_KEPT = 100.0, 0.8  # a converging run loses both: the gradient never falls alone
SOLVED = 0.9  # success in training above which a lone failure is all that a step learns from
FALL_CONFIDENCE = 0.95  # of the whole run, over all pairs of evaluations: the best of many was partly lucky
MIN_DIFFERENT = 6  # problems: fewer cannot be significant (`evaluation/compare.py`)
# Nats: the base's answers get a perplexity 7 times the base's own. Chosen after the benchmark: the embedded model
# knows only its task, and reaches 2.05 (s.e. 0.21) in a healthy run.
DIVERGENCE_MOST = 2.0


@dataclass(frozen=True)
class Finding:
    """One line for the user, and the numbers in it."""

    message: str
    evidence: Mapping[str, float]


@dataclass(frozen=True)
class Rule:
    """A rule; `after` is the type of event that it is checked after."""

    name: str
    after: Literal["step", "eval"]
    find: Callable[[History], Finding | None]


def check(history: History, after: str) -> dict[str, Finding]:
    """Return what the rules find after an event of this type, by rule, without those that have warned."""
    due = [rule for rule in RULES if rule.after == after and rule.name not in history.warned]
    return {rule.name: found for rule in due if (found := rule.find(history))}


def no_success(history: History) -> Finding | None:
    """No success in the first steps and none in the probe, instead of what `no_signal`, `teacher` and it find."""
    steps = len(history.first)
    rollouts = steps * history.rollouts
    if not history.hopeless or not (steps >= WINDOW_STEPS or rollouts >= WINDOW_ROLLOUTS):
        return None
    probe = history.probe or {}
    answers = int(number(probe.get("teacher/answers")) or 0)
    alone = "the probe before had no context to show, neither feedback nor a success"
    teacher = f"0 of {answers} of the self-teacher with its context in the probe before" if answers else alone
    done = f"{steps} steps" if steps > 1 else "the first step"
    return Finding(
        f"nothing has succeeded: 0 of {rollouts} rollouts in {done}; {teacher}. Use a larger model, "
        "easier problems, feedback that states what is right, or right answers in the dataset "
        "(teacher.demonstration: dataset)",
        {"steps": steps, "rollouts": rollouts, "teacher/answers": answers},
    )


def no_signal(history: History) -> Finding | None:
    """Nothing to learn from in several steps in a row."""
    if history.hopeless:
        return None
    steps = list(history.last)[-BARREN_STEPS:]
    # A step that was refused, because a number in it was not finite, has no loss either.
    if len(steps) < BARREN_STEPS or any(number(s.get("loss")) is not None or "non_finite" in s for s in steps):
        return None
    rollouts = BARREN_STEPS * history.rollouts
    feedback, successes = (
        round(sum(number(s.get(f"{name}/rate")) or 0.0 for s in steps) * history.rollouts)
        for name in ("feedback", "success")
    )
    numbers = {"steps": BARREN_STEPS, "rollouts": rollouts, "feedback": feedback, "successes": successes}
    if successes == rollouts:
        return Finding(
            f"all {rollouts} rollouts of {BARREN_STEPS} steps in a row succeeded: nothing is left to learn. Stop, or "
            "use harder problems",
            numbers,
        )
    return Finding(
        f"nothing could be learned in {BARREN_STEPS} steps in a row: {rollouts} rollouts, {feedback} with feedback "
        f"from the environment, {successes} successes. Try easier problems, a more detailed task.feedback, a larger "
        "rollout.group_size, or objective.kind: hybrid",
        numbers,
    )


def teacher(history: History) -> Finding | None:
    """A self-teacher that succeeds no more often than the student, over its last rollouts."""
    if history.hopeless:
        return None
    answers, right, student = 0, 0.0, 0.0
    for step in reversed(history.teacher):
        count = int(number(step.get("teacher/answers")) or 0)
        answers += count
        right += count * (number(step.get("teacher/success")) or 0.0)
        student += count * (number(step.get("teacher/student")) or 0.0)
        if answers >= TEACHER_ENOUGH:
            break
    if answers < (TEACHER_ENOUGH if right else TEACHER_NONE) or right > student or student >= TEACHER_NEEDED * answers:
        return None
    found, alone = right / answers, student / answers
    return Finding(
        f"the self-teacher succeeds no more often than the student ({_percent(found)} of {answers} rollouts, "
        f"{_percent(alone)} without its context). Inspect its context with `sdpo rollout`, try a more detailed "
        "task.feedback, objective.kind: auto, or a larger model",
        {"teacher": found, "student": alone, "answers": answers},
    )


def success(history: History) -> Finding | None:
    """Training success far below that of the best steps before."""
    windows, peak = history.windows(), history.peak
    if windows is None or peak is None:
        return None
    best, now = peak.mean(SUCCESS), windows[1].mean(SUCCESS)
    if not best - now >= SUCCESS_FALL:
        return None
    return Finding(
        f"training success fell from {_percent(best)} ({peak}) to {_percent(now)} ({windows[1]}): more than the mix of "
        "problems. Lower train.learning_rate",
        {"best": best, "now": now},
    )


def over_windows(find: Callable[[Window, Window], Finding | None]) -> Callable[[History], Finding | None]:
    """Return the rule over a history of one over its first and its last steps; nothing is found while they overlap."""

    def found(history: History) -> Finding | None:
        windows = history.windows()
        return find(*windows) if windows else None

    return found


def entropy(first: Window, last: Window) -> Finding | None:
    """Entropy far above that of the first steps; or far below it, without more success."""
    before, now = (window.median("entropy") for window in (first, last))
    change = f"{before:.2g} nats per token ({first}) to {now:.2g} ({last})"
    numbers = {"first": before, "now": now}
    if now > ENTROPY_RISE * before and now - before > ENTROPY_NATS:
        return Finding(
            f"the student's entropy rose from {change}: its answers become random. Lower train.learning_rate", numbers
        )
    if now < before / ENTROPY_FALL and (success := _no_more_success(first, last)):
        return Finding(
            f"the student's entropy fell from {change}, {success}: its answers become alike. Raise "
            "rollout.temperature or rollout.group_size, or lower train.learning_rate",
            numbers,
        )
    return None


def length(first: Window, last: Window) -> Finding | None:
    """Rollouts much longer or shorter than in the first steps, without more success."""
    before, now = (window.median("length/mean") for window in (first, last))
    drifted = now > LENGTH_RATIO * before or now < before / LENGTH_RATIO
    if not drifted or not (success := _no_more_success(first, last)):
        return None
    return Finding(
        f"rollouts {'grew' if now > before else 'shrank'} from {before:.0f} tokens ({first}) to {now:.0f} "
        f"({last}), {success}. Read some in `sdpo report`, and lower train.learning_rate",
        {"first": before, "now": now},
    )


def truncated(history: History) -> Finding | None:
    """More than a third of the rollouts truncated in the last steps, or more than in the first ones."""
    latest, windows = history.latest_window(), history.windows()
    if latest is None:
        return None
    now = latest.mean("length/truncated")
    rose = windows is not None and _rose(*windows, "length/truncated", TRUNCATED_RISE)
    if not (rose or now > TRUNCATED_MOST):
        return None
    before, numbers = "", {"now": now}
    if windows is not None:
        first = windows[0].mean("length/truncated")
        before, numbers = f"; {windows[0]}: {_percent(first)}", {"first": first, "now": now}
    return Finding(
        f"{_percent(now)} of the rollouts are cut off at rollout.max_tokens ({latest}{before}). They never serve as a "
        f"demonstration: raise --max-tokens{', lower train.learning_rate, since it rose,' if rose else ''} or name a "
        "text at which they end (rollout.stop)",
        numbers,
    )


def leakage(first: Window, last: Window) -> Finding | None:
    """Rollouts that repeat the self-teacher's context."""
    if not _rose(first, last, "leakage/rate", LEAKAGE_RISE):
        return None
    before, now = (window.mean("leakage/rate") for window in (first, last))
    return Finding(
        f"{_percent(now)} of the rollouts repeat phrases of the feedback or of the self-teacher's context "
        f"({last}; {first}: {_percent(before)}): the student learns to talk about what it cannot see. Read "
        "some in `sdpo report`, lower train.learning_rate, or shorten the feedback to facts",
        {"first": before, "now": now},
    )


def gradient(first: Window, last: Window) -> Finding | None:
    """A gradient that vanished under a loss that did not."""
    before, now = (window.median("grad/norm") for window in (first, last))
    loss, loss_now = (window.median("loss") for window in (first, last))
    fell = now < before / GRADIENT_FALL and loss > 0 and loss_now >= LOSS_KEPT * loss
    if not fell or last.median("success/rate") > SOLVED:
        return None
    return Finding(
        f"the gradient norm fell from {before:.2g} ({first}) to {now:.2g} ({last}) while the loss stayed "
        f"({loss:.2g} and {loss_now:.2g}): the student no longer moves. Lower train.learning_rate, or start again from "
        "the best adapter",
        {"first": before, "now": now, "loss/first": loss, "loss/now": loss_now},
    )


def held_out(history: History) -> Finding | None:
    """A held-out score below the best one by more than its interval, paired by problem.

    The interval holds for all pairs of the run's evaluations together (Bonferroni): the best one was chosen.
    """
    best, latest, count = history.best, history.latest, history.evaluations
    if best is None or latest is None or not (best.get("rewards") and latest.get("rewards")):
        return None
    shared = [name for name in best["rewards"] if name in latest["rewards"]]
    rows = [[each["rewards"][name] for name in shared] for each in (best, latest)]
    confidence = 1 - (1 - FALL_CONFIDENCE) / (count * (count - 1) / 2)
    difference, (low, high), different = statistics.paired_student(rows[0], rows[1], confidence=confidence)
    if not high < 0 or different < MIN_DIFFERENT:
        return None
    return Finding(
        f"the held-out score fell from {_percent(best['score'], 1)} at step {best['step']} to "
        f"{_percent(latest['score'], 1)}: {100 * difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}, "
        f"paired by problem, {_percent(FALL_CONFIDENCE)} over all {count} evaluations). The best adapter is kept; see "
        "train.on_decline",
        {"best": best["score"], "best_step": best["step"], "now": latest["score"], "low": low, "high": high},
    )


def divergence(history: History) -> Finding | None:
    """A student far from its base on general prompts."""
    latest = history.latest or {}
    shift, error = (number(latest.get(f"forgetting/{name}")) for name in ("divergence", "divergence_error"))
    if shift is None or not shift - 2 * (error or 0.0) > DIVERGENCE_MOST:
        return None
    return Finding(
        f"the student diverges from its base by {shift:.2f} nats per token on general prompts "
        f"(s.e. {error or 0.0:.2f}; more than {DIVERGENCE_MOST:g}): it forgets what it could do. "
        "Lower train.learning_rate, or stop earlier (train.patience)",
        {"divergence": shift, "error": error or 0.0},
    )


RULES = (
    Rule("no_success", "step", no_success),
    Rule("no_signal", "step", no_signal),
    Rule("teacher", "step", teacher),
    Rule("success", "step", success),
    Rule("entropy", "step", over_windows(entropy)),
    Rule("length", "step", over_windows(length)),
    Rule("truncated", "step", truncated),
    Rule("leakage", "step", over_windows(leakage)),
    Rule("gradient", "step", over_windows(gradient)),
    Rule("held_out", "eval", held_out),
    Rule("divergence", "eval", divergence),
)
AFTER_EVALUATION = frozenset(rule.name for rule in RULES if rule.after == "eval")


def _rose(first: Window, last: Window, name: str, least: float) -> bool:
    """Return whether a share of rollouts rose by at least so much, and by more than chance."""
    before, now = first.mean(name), last.mean(name)
    pooled = (before + now) / 2
    error = math.sqrt(pooled * (1 - pooled) * (1 / first.rollouts + 1 / last.rollouts)) if pooled >= 0 else math.nan
    return now - before >= max(least, SIGMAS * error)


def _no_more_success(first: Window, last: Window) -> str:
    """Return the training success of both windows in words if it did not rise, otherwise a blank text."""
    before, now = (window.mean(SUCCESS) for window in (first, last))
    fine = now - before >= SUCCESS_RISE or now >= SUCCESS_ENOUGH
    return "" if fine else f"without more success ({_percent(before)} and {_percent(now)})"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"
