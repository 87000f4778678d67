"""What the self-teacher sees: a rollout group in, the context of each rollout out; pure functions.

The demonstration is a successful *sibling*, the feedback is what the environment said about this very
rollout (SDPO.md, section 3; arXiv 2601.20802). A success has no feedback, and its own answer never is its
own demonstration, so a lone success learns nothing. In an episode of several turns each answer has a context
of its own: the same first part, then what was said until then.

With `demonstration: dataset` the demonstration is the row's own reference answer, for every rollout, the successful
ones too: SDFT (arXiv 2601.19897), learning from offline demonstrations while the student answers by itself. Its parts
under our names: `teacher.kind: ema`, `objective.support: full`, `objective.alpha: 1.0` for the reverse KL of its
equations (0.0 for the forward KL, which its published code is said to use), no feedback. A row without a
reference falls back to feedback where that is on, and else teaches nothing. The student never sees a reference.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdpo_mlx.config import TeacherConfig
from sdpo_mlx.core.seeding import rng
from sdpo_mlx.core.text import FEEDBACK_LIMIT, clean, fill_template, strip_thinking
from sdpo_mlx.types import (
    FROM_DATASET,
    Demonstration,
    Exchange,
    Message,
    Problem,
    Rollout,
    RolloutGroup,
    TeacherContext,
)

SOLUTION_HEADING = "Correct solution:"
ATTEMPT_HEADING = "Your unsuccessful earlier attempt:"
FEEDBACK_HEADING = "The following is feedback from your unsuccessful earlier attempt:"
CLOSING_LINE = "Correctly solve the original question."


def demonstration_for(group: RolloutGroup, index: int, cfg: TeacherConfig, seed: int) -> Demonstration | None:
    """The right answer shown for rollout `index`, thinking removed; None where there is none.

    `seed` stands for the run and the step; `random` draws from it, the problem and the index.
    """
    if cfg.demonstration == "off":
        return None
    if cfg.demonstration == "dataset":
        return _given(group.problem)
    usable = [d for i in range(len(group.rollouts)) if (i != index or cfg.own_success) and (d := _shown(group, i, cfg))]
    if not usable:
        return None
    if cfg.demonstration == "first":
        return usable[0]
    return usable[int(rng("demonstration", seed, group.problem.id, index).integers(len(usable)))]


def _given(problem: Problem) -> Demonstration | None:
    text = clean(strip_thinking(problem.reference or "")).strip()
    return Demonstration(text, FROM_DATASET) if text else None


def _shown(group: RolloutGroup, i: int, cfg: TeacherConfig) -> Demonstration | None:
    rollout, feedback = group.rollouts[i], group.feedback[i]
    graded = feedback.success and feedback.kind != "grader_error"
    if not graded or rollout.finish != "stop" or not feedback.reward >= cfg.success_threshold:
        return None
    text = _told(group, i)
    return Demonstration(text, i) if text else None


def _told(group: RolloutGroup, i: int) -> str:
    """The last answer where it decides by itself, else the whole episode."""
    rollout = group.rollouts[i]
    return _bare(rollout) if group.last_decides else transcript(rollout)


def transcript(rollout: Rollout) -> str:
    """An episode as one text: its answers as they were given, and each reply between them quoted with `> `."""
    parts = []
    for exchange in rollout.earlier:
        quoted = "\n".join(f"> {line}".rstrip() for line in exchange.reply.splitlines())
        parts += [_bare(exchange.answer), quoted]
    return "\n\n".join(part for part in (*parts, _bare(rollout)) if part)


def _bare(answer: Rollout) -> str:
    return clean(strip_thinking(answer.text), None).strip()


def history(exchanges: Sequence[Exchange]) -> tuple[Message, ...]:
    """What was said as messages: answers without their thinking, and the environment's replies as the user's."""
    made: list[Message] = []
    for exchange in exchanges:
        made.append({"role": "assistant", "content": strip_thinking(exchange.answer.text)})
        made.append({"role": "user", "content": exchange.reply})
    return tuple(made)


def feedback_for(
    group: RolloutGroup, index: int, cfg: TeacherConfig, demonstration: Demonstration | None
) -> str | None:
    """The environment's text about rollout `index`, cleaned and capped; None for a success or where it is unused."""
    feedback = group.feedback[index]
    hidden = demonstration is not None and cfg.feedback_only_without_demonstration
    if not cfg.feedback or hidden or feedback.success or feedback.kind == "grader_error":
        return None
    return clean(feedback.text, FEEDBACK_LIMIT).strip() or None


def attempt_for(group: RolloutGroup, index: int, cfg: TeacherConfig) -> str | None:
    """The failed answer itself, thinking removed, where the configuration asks to quote it."""
    if not cfg.include_attempt or group.feedback[index].success:
        return None
    return _told(group, index) or None


def teacher_context(
    group: RolloutGroup, index: int, cfg: TeacherConfig, seed: int, turn: int | None = None
) -> TeacherContext | None:
    """What the self-teacher sees for rollout `index`; None when there is neither demonstration nor feedback.

    `turn` counts an episode's answers from 0; None is the last one.
    """
    demonstration = demonstration_for(group, index, cfg, seed)
    feedback = feedback_for(group, index, cfg, demonstration)
    if demonstration is None and feedback is None:
        return None
    shown = demonstration.text if demonstration else None
    messages = teacher_messages(group.problem.messages, shown, feedback, attempt_for(group, index, cfg), cfg)
    said = history(group.rollouts[index].earlier[:turn])
    return TeacherContext((*messages, *said), demonstration, feedback)


def teacher_messages(
    problem_messages: Sequence[Message],
    demonstration: str | None,
    feedback: str | None,
    attempt: str | None,
    cfg: TeacherConfig,
) -> tuple[Message, ...]:
    """The problem's messages with the last user message extended by what is there; the others stay.

    Raises ValueError where no user message is.
    """
    last = max((i for i, message in enumerate(problem_messages) if message["role"] == "user"), default=-1)
    if last < 0:
        raise ValueError("a problem needs a user message")
    content = _layout(problem_messages[last]["content"], demonstration, feedback, attempt, cfg.template)
    return (*problem_messages[:last], {"role": "user", "content": content}, *problem_messages[last + 1 :])


def _layout(
    problem: str, demonstration: str | None, feedback: str | None, attempt: str | None, template: str | None
) -> str:
    if template is not None:
        values = {"problem": problem, "demonstration": demonstration, "attempt": attempt, "feedback": feedback}
        return fill_template(template, values)
    sections = ((SOLUTION_HEADING, demonstration), (ATTEMPT_HEADING, attempt), (FEEDBACK_HEADING, feedback))
    present = [part for heading, body in sections if body is not None for part in (heading, body)]
    return "\n\n".join((problem, *present, CLOSING_LINE))
