"""Lessons: one prompt, the rollouts as they were sampled, and a person's feedback on each.

A row of `coaching.jsonl` holds all that a step needs, so that it can be repeated from the file alone: the messages,
each rollout's ids with their log-probs at sampling time (for the importance weights), and the feedback.
In a task of several turns a row has an episode's last turn; `earlier` has the others with their replies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.text import FEEDBACK_LIMIT, clean, well_formed
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.tasks.custom.values import to_problem
from sdpo_mlx.tasks.data.jsonl import collect
from sdpo_mlx.teacher import history
from sdpo_mlx.types import Exchange, Feedback, Problem, Rollout, RolloutGroup

FIELDS = ("problem", "messages", "tokenizer", "answers")
_TURN = {"answer": str, "finish": str, "seed": int, "ids": list, "logps": list}


@dataclass(frozen=True)
class HumanFeedback:
    """A person's comment on a rollout, or the mark that it is good; neither if there is no feedback."""

    text: str = ""
    good: bool = False

    @property
    def given(self) -> bool:
        """Whether there is any feedback."""
        return self.good or bool(self.text)

    @property
    def as_feedback(self) -> Feedback:
        """The same as feedback from an environment."""
        return Feedback(1.0, True, "", "pass") if self.good else Feedback(0.0, False, self.text, "wrong")


@dataclass(frozen=True)
class Lesson:
    """One prompt with its rollouts or episodes, and the feedback on each; `last_decides` as in `RolloutGroup`."""

    problem: Problem
    rollouts: tuple[Rollout, ...]
    feedback: tuple[HumanFeedback, ...]
    last_decides: bool = True

    @property
    def group(self) -> RolloutGroup | None:
        """The rollouts with feedback; None if there are none."""
        pairs = zip(self.rollouts, self.feedback, strict=True)
        given = [(rollout, feedback.as_feedback) for rollout, feedback in pairs if feedback.given]
        if not given:
            return None
        rollouts, feedback = zip(*given, strict=True)
        return RolloutGroup(self.problem, rollouts, feedback, self.last_decides)

    def row(self, tokenizer: str) -> dict[str, Any]:
        """Return the lesson as JSON; `tokenizer` is the hash of the tokenizer of the ids."""
        answers = []
        for rollout, feedback in zip(self.rollouts, self.feedback, strict=True):
            turns = [{"answer": e.answer.text, "reply": e.reply, **_turn_row(e.answer)} for e in rollout.earlier]
            judged = {"answer": rollout.text, "feedback": feedback.text, "success": feedback.good}
            answers.append({**judged, **_turn_row(rollout), **({"earlier": turns} if turns else {})})
        return {
            "problem": self.problem.id,
            "messages": list(self.problem.messages),
            **({"tools": list(self.problem.tools)} if self.problem.tools else {}),
            "tokenizer": tokenizer,
            **({} if self.last_decides else {"last_decides": False}),
            "answers": answers,
        }


def _turn_row(turn: Rollout) -> dict[str, Any]:
    return {"finish": turn.finish, "seed": turn.seed, "ids": turn.ids_T.tolist(), "logps": turn.logps_T.tolist()}


def read_lessons(path: Path, chat: Chat, vocab_size: int) -> list[Lesson]:
    """Return the lessons of a file in order; raises DataError naming the first ten bad rows with their lines."""
    return collect(path, lambda row, where: lesson_from(row, where, chat, vocab_size), required=FIELDS).items


def lesson_from(row: Mapping[str, Any], where: str, chat: Chat, vocab_size: int) -> Lesson:
    """Return the lesson of a row; raises DataError that names `where`."""
    if row["tokenizer"] != chat.tokenizer_hash:
        fix = "replay it on the model that sampled these rollouts"
        raise DataError("the ids come from another tokenizer", where=where, fix=fix)
    problem = to_problem({"id": row["problem"], "messages": row["messages"], "tools": row.get("tools", ())}, where)
    fault = next(_faults(row, vocab_size), "")
    if fault:
        fix = "use the row as it was saved; only feedback and success may be edited"
        raise DataError(fault, where=where, fix=fix)
    rollouts, feedback = [], []
    for answer in row["answers"]:
        earlier: tuple[Exchange, ...] = ()
        for turn in answer.get("earlier", ()):
            earlier = (*earlier, Exchange(_rollout(turn, problem, chat, earlier), well_formed(turn["reply"])))
        rollouts.append(replace(_rollout(answer, problem, chat, earlier), earlier=earlier))
        feedback.append(HumanFeedback(clean(answer["feedback"], FEEDBACK_LIMIT).strip(), answer["success"]))
    return Lesson(problem, tuple(rollouts), tuple(feedback), row.get("last_decides", True))


def _rollout(turn: Mapping[str, Any], problem: Problem, chat: Chat, earlier: Sequence[Exchange]) -> Rollout:
    """Return one turn; its prompt is rendered again, its ids are taken as stored."""
    return Rollout(
        prompt_ids=chat.render((*problem.messages, *history(earlier)), tools=problem.tools),
        ids_T=np.array(turn["ids"], dtype=np.int32),
        logps_T=np.array(turn["logps"], dtype=np.float32),
        finish=turn["finish"],
        seed=turn["seed"],
        text=well_formed(turn["answer"]),
    )


def _faults(row: Mapping[str, Any], vocab_size: int) -> Iterator[str]:
    """Yield what is wrong with a row; the caller reports the first fault."""
    if type(row.get("last_decides", True)) is not bool:
        yield "last_decides is not a boolean"
    if not isinstance(row["answers"], list):
        yield "answers is not a list"
    for answer in row["answers"]:
        yield from _turn_faults(answer, {**_TURN, "feedback": str, "success": bool}, vocab_size)
        if not isinstance(answer.get("earlier", []), list):
            yield "earlier of an answer is not a list"
        for turn in answer.get("earlier", []):
            yield from _turn_faults(turn, {**_TURN, "reply": str}, vocab_size)


def _turn_faults(turn: Any, fields: Mapping[str, type], vocab_size: int) -> Iterator[str]:
    if not isinstance(turn, Mapping):
        yield "an answer is not an object"
    wrong = [name for name, kind in fields.items() if type(turn.get(name)) is not kind]
    if wrong:
        yield f"{wrong[0]} of an answer is missing or of the wrong type"
    if turn["finish"] not in ("stop", "length"):
        yield "finish of an answer is neither stop nor length"
    if not all(type(i) is int and 0 <= i < vocab_size for i in turn["ids"]):
        yield "ids of an answer are not tokens of this model"
    valid = all(type(value) in (int, float) and value <= 0 for value in turn["logps"])
    if not valid or len(turn["logps"]) != len(turn["ids"]):
        yield "logps of an answer are not log-probs, one per id"
