"""Leakage: which rollouts repeat what only the self-teacher reads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sdpo_mlx.config import TeacherConfig
from sdpo_mlx.rl.leakage import PHRASE, leakage, phrases
from sdpo_mlx.types import Exchange, Feedback, Problem, Rollout, RolloutGroup

TOLD = "The answer is not a JSON object: it has 3 words."
QUESTION = "Return the order as a JSON object with the keys item and count."


def rollout(text: str) -> Rollout:
    ids = np.zeros(1, dtype=np.int32)
    return Rollout(ids, ids, np.zeros(1, dtype=np.float32), "stop", 0, text)


def group(
    *answers: tuple[str, bool], told: str = TOLD, reference: str | None = None, kind: str = "wrong"
) -> RolloutGroup:
    feedback = tuple(
        Feedback(float(right), right, "" if right else told, "pass" if right else kind)  # type: ignore[arg-type]
        for _, right in answers
    )
    problem = Problem("p", ({"role": "user", "content": QUESTION},), reference=reference)
    return RolloutGroup(problem, tuple(rollout(text) for text, _ in answers), feedback)


def rate(*groups: RolloutGroup, **teacher: str) -> float:
    return leakage(groups, TeacherConfig.model_validate(teacher))


QUOTES = "the answer is not a json object"


@pytest.mark.parametrize(
    ("answer", "leaks"),
    [
        ("{}", False),
        (QUOTES.upper() + "!", True),
        ("The answer is not, a JSON", True),  # punctuation does not matter
        ("The answer is not 5", False),  # four words
        ("Return the order as a JSON object", False),  # of the problem
        ("Correctly solve the original question.", True),  # of the frame
        ("from your unsuccessful earlier attempt", True),
    ],
)
def test_a_rollout_leaks_that_repeats_feedback_or_frame(answer: str, leaks: bool) -> None:
    # Its own feedback would be about what it says: that of the sibling is what it cannot know.
    assert rate(group((answer, False), ("{}", False))) == leaks / 2


def test_feedback_that_quotes_its_own_rollout_is_no_leak() -> None:
    said = "sorted by the second letter of the name"
    assert rate(group((said, False), ("{}", False), told=f"You wrote: {said}.")) == 0.5  # the sibling's feedback too
    assert rate(group((said, False), told=f"You wrote: {said}.")) == 0.0


def test_what_right_answers_and_references_have_is_no_leak() -> None:
    shown = "expected: one two three four five six"
    assert rate(group(("one two three four five", False), ("no", False), told=shown)) == 0.5
    assert (
        rate(group(("one two three four five", False), ("one two three four five", True), ("no", False), told=shown))
        == 0
    )
    assert (
        rate(
            group(
                ("one two three four five", False), ("no", False), told=shown, reference="one two three four five six"
            )
        )
        == 0
    )


def test_a_right_answer_that_repeats_the_frame_leaks() -> None:
    assert rate(group(("Correctly solve the original question. 4", True))) == 1.0


def test_the_frame_is_that_of_the_template() -> None:
    template = "{problem}\n\nA wise friend remarks on this:\n{feedback}"
    said = group(("A wise friend remarks on this", False), told="no")
    assert rate(said, template=template) == 1.0
    assert rate(said) == 0.0


def test_a_grader_error_and_the_environments_replies_are_no_feedback() -> None:
    assert rate(group((QUOTES, False), ("{}", False), kind="grader_error")) == 0.0
    told = group((QUOTES, False), ("{}", False))
    answer = replace(told.rollouts[0], earlier=(Exchange(rollout("?"), TOLD),))
    assert rate(replace(told, rollouts=(answer, told.rollouts[1]))) == 0.0


def test_nothing_sampled_has_no_rate() -> None:
    assert math.isnan(rate())


def test_phrases_are_words_in_a_row_and_characters_without_spaces() -> None:
    assert phrases(["a b 1 c_d e f"]) == {tuple("abcde"), tuple("bcdef")}
    assert phrases(["one", "two three"]) == set()
    assert len(phrases(["日本語の文章です"])) == 8 - PHRASE + 1
