"""The context of the self-teacher for each rollout of a group; pure functions.

The demonstration is a successful rollout of the same group, a *sibling*; the feedback is the grader's text about
this rollout (arXiv 2601.20802). A successful rollout has no feedback and is not its own demonstration, so a single
success in a group is not learned from. In an episode of several turns each turn has its own context: the same
first part, then the conversation up to that turn.

A group whose rollouts all succeeded has no demonstration unless `all_correct` is set: it has nothing to learn but the
wording of one of them, and long runs that learn it collapse sooner (docs/results.md).

With `demonstration: dataset` the demonstration is the row's reference answer, for every rollout, successful or not:
SDFT (arXiv 2601.19897), which learns from offline demonstrations while the student samples by itself. Its settings
here: `teacher.kind: ema`, `objective.support: full`, `objective.alpha: 1.0` for the reverse KL of its equations
(0.0 for the forward KL, which its published code is said to use), no feedback. A row without a reference falls back
to feedback if that is on, otherwise it is not learned from. The student never sees a reference.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdpo_mlx.config import TeacherConfig
from sdpo_mlx.config.templates import DEFAULT, TEMPLATES
from sdpo_mlx.core.seeding import rng
from sdpo_mlx.core.text import FEEDBACK_LIMIT, clean, fill_parts, fill_template, strip_thinking
from sdpo_mlx.types import (
    FROM_DATASET,
    Demonstration,
    Exchange,
    Message,
    Rollout,
    RolloutGroup,
    TeacherContext,
)


def demonstration_for(group: RolloutGroup, index: int, cfg: TeacherConfig, seed: int) -> Demonstration | None:
    """Return the demonstration for rollout `index`, thinking removed; None if there is none.

    `seed` identifies run and step; `random` is seeded by it, the problem and the index.
    """
    if cfg.demonstration == "off":
        return None
    if cfg.demonstration == "dataset":
        text = clean(strip_thinking(group.problem.reference or "")).strip()
        return Demonstration(text, FROM_DATASET) if text else None
    if group.pass_rate == 1.0 and not cfg.all_correct:
        return None
    usable: list[Demonstration] = []
    for i, (rollout, feedback) in enumerate(zip(group.rollouts, group.feedback, strict=True)):
        graded = feedback.success and feedback.kind != "grader_error" and feedback.reward >= cfg.success_threshold
        own = i == index and not cfg.own_success
        if graded and not own and rollout.finish == "stop" and (text := _shown_text(group, i)):
            usable.append(Demonstration(text, i))
    if not usable:
        return None
    if cfg.demonstration == "first":
        return usable[0]
    return usable[int(rng("demonstration", seed, group.problem.id, index).integers(len(usable)))]


def _shown_text(group: RolloutGroup, i: int) -> str:
    """Return the last turn if it is a solution by itself, otherwise the whole episode."""
    rollout = group.rollouts[i]
    return _bare(rollout) if group.last_decides else transcript(rollout)


def transcript(rollout: Rollout) -> str:
    """Return an episode as one text: the turns, and each reply between them quoted with `> `."""
    parts = []
    for exchange in rollout.earlier:
        quoted = "\n".join(f"> {line}".rstrip() for line in exchange.reply.splitlines())
        parts += [_bare(exchange.answer), quoted]
    return "\n\n".join(part for part in (*parts, _bare(rollout)) if part)


def _bare(answer: Rollout) -> str:
    return clean(strip_thinking(answer.text), None).strip()


def history(exchanges: Sequence[Exchange]) -> tuple[Message, ...]:
    """Return exchanges as messages: rollouts without thinking as the assistant's, replies as the user's."""
    made: list[Message] = []
    for exchange in exchanges:
        made.append({"role": "assistant", "content": strip_thinking(exchange.answer.text)})
        made.append({"role": "user", "content": exchange.reply})
    return tuple(made)


def feedback_for(
    group: RolloutGroup, index: int, cfg: TeacherConfig, demonstration: Demonstration | None
) -> str | None:
    """Return the feedback on rollout `index`, cleaned and shortened; None for a success or if it is unused."""
    feedback = group.feedback[index]
    hidden = demonstration is not None and cfg.feedback_only_without_demonstration
    if not cfg.feedback or hidden or feedback.success or feedback.kind == "grader_error":
        return None
    return clean(feedback.text, FEEDBACK_LIMIT).strip() or None


def attempt_for(group: RolloutGroup, index: int, cfg: TeacherConfig) -> str | None:
    """Return the failed rollout, thinking removed; None for a success or if it is not to be quoted."""
    if not cfg.include_attempt or group.feedback[index].success:
        return None
    return _shown_text(group, index) or None


def teacher_context(
    group: RolloutGroup, index: int, cfg: TeacherConfig, seed: int, turn: int | None = None
) -> TeacherContext | None:
    """Return the self-teacher's context for rollout `index`; None without demonstration and feedback.

    `turn` counts the turns of an episode from 0; None is the last one.
    """
    demonstration = demonstration_for(group, index, cfg, seed)
    feedback = feedback_for(group, index, cfg, demonstration)
    if demonstration is None and feedback is None:
        return None
    shown = demonstration.text if demonstration else None
    messages = teacher_messages(group.problem.messages, shown, feedback, attempt_for(group, index, cfg), cfg)
    earlier = history(group.rollouts[index].earlier[:turn])
    return TeacherContext((*messages, *earlier), demonstration, feedback)


def teacher_messages(
    problem_messages: Sequence[Message],
    demonstration: str | None,
    feedback: str | None,
    attempt: str | None,
    cfg: TeacherConfig,
) -> tuple[Message, ...]:
    """Return the problem's messages with the last user message extended by the given parts.

    Raises ValueError without a user message.
    """
    last = max((i for i, message in enumerate(problem_messages) if message["role"] == "user"), default=-1)
    if last < 0:
        raise ValueError("a problem needs a user message")
    problem = problem_messages[last]["content"]
    values = {"problem": problem, "demonstration": demonstration, "attempt": attempt, "feedback": feedback}
    parts = TEMPLATES.get(cfg.template or DEFAULT)
    content = fill_parts(parts, values) if parts else fill_template(str(cfg.template), values)
    return (*problem_messages[:last], {"role": "user", "content": content}, *problem_messages[last + 1 :])
