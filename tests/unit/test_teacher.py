"""Who is shown to whom, what is said about what, and how the last user message looks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sdpo_mlx.config import TeacherConfig
from sdpo_mlx.config.templates import TEMPLATES, template_name
from sdpo_mlx.core.text import check_template
from sdpo_mlx.teacher import demonstration_for, feedback_for, teacher_context, teacher_messages
from sdpo_mlx.types import Feedback, Problem, Rollout, RolloutGroup

MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sort {x} \\ it."})


def rollout(text, finish="stop"):
    ids = np.arange(3, dtype=np.int32)
    return Rollout(ids, ids, np.zeros(3, np.float32), finish, 0, text)


def group(*answers):
    """Each answer is (text, success) or (text, success, feedback text)."""
    rollouts = tuple(rollout(a[0]) for a in answers)
    feedback = tuple(
        Feedback(float(a[1]), a[1], a[2] if len(a) > 2 else "", "pass" if a[1] else "wrong") for a in answers
    )
    return RolloutGroup(Problem("p", MESSAGES), rollouts, feedback)


def test_demonstration_is_the_first_successful_sibling():
    made = group(("bad", False), ("one", True), ("two", True))
    assert [demonstration_for(made, i, TeacherConfig(), 0).text for i in range(3)] == ["one", "two", "one"]


def test_lone_success_learns_nothing_and_teaches_the_others():
    made = group(("bad", False), ("good", True, "well done"))
    assert teacher_context(made, 1, TeacherConfig(), 0) is None
    assert teacher_context(made, 0, TeacherConfig(), 0).demonstration.source == 1


def test_own_success_is_shown_only_when_asked_for():
    made = group(("good", True), ("bad", False))
    assert demonstration_for(made, 0, TeacherConfig(own_success=True), 0).text == "good"
    assert demonstration_for(made, 0, TeacherConfig(), 0) is None


def test_group_of_successes_is_shown_one_only_when_asked_for():
    made = group(("one", True), ("two", True))
    assert [teacher_context(made, i, TeacherConfig(), 0) for i in range(2)] == [None, None]
    shown = [teacher_context(made, i, TeacherConfig(all_correct=True), 0) for i in range(2)]
    assert [each.demonstration.text for each in shown] == ["two", "one"]


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.sampled_from(["first", "random"]), st.integers(0, 99))
def test_demonstration_is_a_successful_sibling_for_any_outcome(successes, kind, seed):
    made = group(*[(f"a{i}", s) for i, s in enumerate(successes)])
    for i in range(len(successes)):
        shown = demonstration_for(made, i, TeacherConfig(demonstration=kind, all_correct=True), seed)
        siblings = [j for j, s in enumerate(successes) if s and j != i]
        assert (shown is None) == (not siblings)
        assert shown is None or (shown.source in siblings and shown.text == f"a{shown.source}")


def test_random_demonstration_depends_on_seed_alone_and_reaches_every_sibling():
    made = group(("bad", False), *[(f"a{i}", True) for i in range(4)])
    cfg = TeacherConfig(demonstration="random")
    drawn = [demonstration_for(made, 0, cfg, seed).source for seed in range(60)]
    assert drawn == [demonstration_for(made, 0, cfg, seed).source for seed in range(60)]
    assert set(drawn) == {1, 2, 3, 4}


def test_demonstration_is_off_when_configured_off():
    assert demonstration_for(group(("bad", False), ("one", True)), 0, TeacherConfig(demonstration="off"), 0) is None


@pytest.mark.parametrize("text", ["<think>all thought", "<think>x</think>  \n", "", " \x00\x1b[0m "])
def test_blank_answer_is_no_demonstration(text):
    assert demonstration_for(group(("bad", False), (text, True)), 0, TeacherConfig(), 0) is None


def test_thinking_is_removed_from_a_demonstration():
    made = group(("bad", False), ("<think>hm</think>\n\nx = {1} \\o/", True))
    assert demonstration_for(made, 0, TeacherConfig(), 0).text == "x = {1} \\o/"


def test_truncated_success_is_no_demonstration():
    made = group(("bad", False), ("good", True))
    cut = RolloutGroup(made.problem, (made.rollouts[0], rollout("good", "length")), made.feedback)
    assert demonstration_for(cut, 0, TeacherConfig(), 0) is None


@pytest.mark.parametrize(
    ("reward", "success", "kind"),
    [(0.4, True, "pass"), (1.0, False, "wrong"), (float("nan"), True, "pass"), (1.0, True, "grader_error")],
)
def test_demonstration_needs_success_and_reward(reward, success, kind):
    made = group(("bad", False), ("good", True))
    judged = RolloutGroup(made.problem, made.rollouts, (made.feedback[0], Feedback(reward, success, "", kind)))
    assert demonstration_for(judged, 0, TeacherConfig(success_threshold=0.5), 0) is None


def test_feedback_is_shown_only_where_no_demonstration_is():
    made = group(("bad", False, "boom"), ("good", True))
    assert teacher_context(made, 0, TeacherConfig(), 0).feedback is None
    both = teacher_context(made, 0, TeacherConfig(feedback_only_without_demonstration=False), 0)
    assert (both.feedback, both.demonstration.text) == ("boom", "good")


@pytest.mark.parametrize("text", ["", "  \n", "\x00"])
def test_blank_feedback_gives_no_context(text):
    assert teacher_context(group(("bad", False, text)), 0, TeacherConfig(), 0) is None


def test_success_and_grader_error_have_no_feedback():
    made = group(("good", True, "every test passed"))
    assert feedback_for(made, 0, TeacherConfig(), None) is None
    broken = RolloutGroup(made.problem, made.rollouts, (Feedback(0.0, False, "trace", "grader_error"),))
    assert feedback_for(broken, 0, TeacherConfig(), None) is None


def test_feedback_is_off_when_configured_off():
    assert teacher_context(group(("bad", False, "boom")), 0, TeacherConfig(feedback=False), 0) is None


def test_each_rollout_sees_its_own_feedback():
    made = group(("a", False, "first"), ("b", False, "second"))
    assert [teacher_context(made, i, TeacherConfig(), 0).feedback for i in (0, 1)] == ["first", "second"]


def test_layout_has_all_sections_in_order_and_keeps_the_other_messages():
    made = teacher_messages(MESSAGES, "demo", "said", "tried", TeacherConfig())
    assert made[0] == MESSAGES[0]
    assert made[1]["content"] == (
        "Sort {x} \\ it.\n\nCorrect solution:\n\ndemo\n\nYour unsuccessful earlier attempt:\n\ntried\n\n"
        "The following is feedback from your unsuccessful earlier attempt:\n\nsaid\n\n"
        "Correctly solve the original question."
    )


def test_layout_leaves_absent_sections_out():
    made = teacher_messages(MESSAGES, None, "said {problem}", None, TeacherConfig())
    assert made[1]["content"] == (
        "Sort {x} \\ it.\n\nThe following is feedback from your unsuccessful earlier attempt:\n\nsaid {problem}\n\n"
        "Correctly solve the original question."
    )


def test_only_the_last_user_message_is_extended():
    turns = (*MESSAGES, {"role": "assistant", "content": "no"}, {"role": "user", "content": "again"})
    made = teacher_messages(turns, "demo", None, None, TeacherConfig())
    assert made[:3] == turns[:3]
    assert made[3]["content"].startswith("again\n\nCorrect solution:\n\ndemo")


def test_messages_without_a_user_are_refused():
    with pytest.raises(ValueError, match="user message"):
        teacher_messages(MESSAGES[:1], "demo", None, None, TeacherConfig())


def test_attempt_is_quoted_only_when_asked_for():
    made = group(("<think>x</think>tried", False, "boom"))
    asked = teacher_context(made, 0, TeacherConfig(include_attempt=True), 0).messages[1]["content"]
    assert "Your unsuccessful earlier attempt:\n\ntried\n\n" in asked
    assert "tried" not in teacher_context(made, 0, TeacherConfig(), 0).messages[1]["content"]


def test_own_template_lays_out_the_message():
    cfg = TeacherConfig(template="Q: {problem}\n\nA: {demonstration}\n\nE: {feedback}")
    made = teacher_messages(MESSAGES, None, "{problem}", None, cfg)
    assert made[1]["content"] == "Q: Sort {x} \\ it.\n\nE: {problem}"


def test_bad_template_is_refused_when_the_configuration_loads():
    with pytest.raises(ValidationError, match="unknown slot"):
        TeacherConfig(template="{problem} {hint}")


# ---- named templates

PARTS = [("S", None, None), (None, "F", None), ("S", "F", None), ("S", "F", "A"), (None, "F", "A")]


def layout(template, demonstration, feedback, attempt):
    cfg = TeacherConfig(template=template)
    return teacher_messages(MESSAGES[1:], demonstration, feedback, attempt, cfg)[0]["content"]


@pytest.mark.parametrize("parts", PARTS)
def test_reference_template_has_the_line_breaks_of_the_authors_configuration(parts):
    demonstration, feedback, attempt = parts
    # Their three templates, filled one into the other; they quote no attempt.
    solution = f"\nCorrect solution:\n\n{demonstration}" if demonstration else ""
    said = f"\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback}" if feedback else ""
    quoted = f"\nYour unsuccessful earlier attempt:\n\n{attempt}" if attempt else ""
    expected = f"{MESSAGES[1]['content']}{solution}{quoted}{said}\n\nCorrectly solve the original question."
    assert layout("reference", *parts) == expected


@pytest.mark.parametrize("parts", PARTS)
def test_paper_is_the_name_of_the_default_template(parts):
    assert layout("paper", *parts) == layout(None, *parts)
    assert (template_name(None), template_name("facts"), template_name("{problem} {feedback}")) == (
        "paper",
        "facts",
        "custom",
    )


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("parts", PARTS)
def test_named_templates_hold_each_part_once_and_no_heading_of_a_missing_one(name, parts):
    check_template("".join(TEMPLATES[name]))
    text = layout(name, *(part and f"<{part}>" for part in parts))
    assert [text.count(f"<{part}>") for part in parts if part] == [1] * sum(map(bool, parts))
    assert text.count(MESSAGES[1]["content"]) == 1
    headings = [part for part in TEMPLATES[name] if "{" in part and "{problem}" not in part]
    assert sum(heading.partition("{")[0] in text for heading in headings) == sum(map(bool, parts))
