"""Every rollout a sample or a skip, spans equal, budgets kept, weights where the objective wants them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_groups import GRPO, HYBRID, QUESTION, SDPO, batch, chat, group, prompt_of, reasons
from small_tokenizers import FAMILIES

from sdpo_mlx.config import ObjectiveConfig

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
ANSWERS = st.lists(
    st.tuples(TEXTS, st.booleans(), st.text(st.characters(codec=None), max_size=80)), min_size=1, max_size=4
)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@settings(max_examples=25, deadline=None)
@given(answers=ANSWERS, objective=st.sampled_from([SDPO, GRPO, HYBRID]))
def test_spans_are_equal_and_nothing_is_lost_for_any_text(name, answers, objective):
    made = group(*answers, name=name)
    result = batch([made], objective, name=name)
    assert sorted([s.index for s in result.samples] + [s.index for s in result.skips]) == list(range(len(answers)))
    for sample in result.samples:
        rollout = made.rollouts[sample.index]
        assert np.array_equal(sample.ids_T, rollout.ids_T)
        assert np.array_equal(sample.student_ids[: sample.student_span[0]], rollout.prompt_ids)
        assert sample.student_span[1] == sample.student_ids.size
        if sample.distil_weight:
            assert np.array_equal(sample.teacher_ids[slice(*sample.teacher_span)], rollout.ids_T)
            assert sample.teacher_span[1] == sample.teacher_ids.size


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_hostile_feedback_adds_no_control_token_to_the_teacher_prompt(name):
    tokens = [*FAMILIES[name].special, *FAMILIES[name].plain_added]
    hostile = "".join(tokens) + "{problem} \\1 " + " ".join(tokens)
    counts = []
    for said in ("quiet words", hostile):
        sample = batch([group(("bad", False, said), name=name)], name=name).samples[0]
        counts.append(Counter(i for i in sample.teacher_ids.tolist() if i in chat(name).control_ids))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_teacher_prompt_keeps_frame_system_message_and_question(name):
    said = "{x} \\frac \\1 %s"
    text = prompt_of(batch([group(("bad", False, said), name=name)], name=name).samples[0], name)
    assert text.startswith(FAMILIES[name].begins.removesuffix("You are a helpful assistant"))
    assert text.endswith(FAMILIES[name].ends)
    assert "Be brief." in text
    assert text.count(QUESTION) == 1
    assert said in text


def test_lone_success_without_feedback_elsewhere_teaches_the_others_only():
    result = batch([group(("good", True, "fine"), ("bad", False, ""))])
    assert reasons(result) == {0: "no_signal"}
    assert result.contexts[("p", 1)].demonstration.text == "good"
    assert (result.samples[0].distil_weight, result.samples[0].policy_weight) == (1.0, 0.0)


def test_no_success_and_no_feedback_skips_everything():
    result = batch([group(("a", False, ""), ("b", False, " "))])
    assert reasons(result) == {0: "no_signal", 1: "no_signal"}
    assert result.samples == ()
    assert result.contexts == {}


def test_grader_errors_and_empty_answers_are_skipped_by_name():
    result = batch([group(("a", False, "trace", "grader_error"), ("", False, "empty"), ("b", False, "wrong"))])
    assert reasons(result) == {0: "grader_error", 1: "no_tokens"}
    assert [s.index for s in result.samples] == [2]


def test_grpo_learns_from_rewards_without_contexts():
    result = batch([group(("good", True, ""), ("bad", False, "boom"))], GRPO)
    assert [(s.distil_weight, s.policy_weight, s.advantage) for s in result.samples] == [(0, 1, 0.5), (0, 1, -0.5)]
    assert all(s.teacher_ids.size == 0 for s in result.samples)
    assert result.contexts == {}


def test_grpo_skips_a_group_of_equal_rewards():
    assert reasons(batch([group(("a", False, "x"), ("b", False, "y"))], GRPO)) == {0: "no_signal", 1: "no_signal"}


def test_grader_errors_take_no_part_in_the_advantages():
    made = group(("a", True, ""), ("b", False, ""), ("c", False, "", "grader_error"))
    assert [s.advantage for s in batch([made], GRPO).samples] == [0.5, -0.5]


def test_hybrid_keeps_both_halves_and_a_success_without_context_its_policy_half():
    result = batch([group(("good", True, ""), ("bad", False, ""))], ObjectiveConfig(kind="hybrid", hybrid_weight=0.25))
    assert [(s.distil_weight, s.policy_weight) for s in result.samples] == [(0.0, 0.25), (0.75, 0.25)]


def test_question_weight_scales_both_halves():
    halves = group(("good", True, ""), ("bad", False, ""), problem="half")
    flat = group(("bad", False, "boom"), ("bad", False, "boom"), problem="flat")
    result = batch([halves, flat], ObjectiveConfig(kind="hybrid", question_weight="pass_rate"))
    assert {s.problem_id: s.policy_weight for s in result.samples} == {"half": 1.0}
    assert [s.problem_id for s in result.skips] == ["flat", "flat"]


def test_route_sends_successes_to_the_policy_half():
    made = group(("a", True, ""), ("b", True, ""), ("c", False, ""))
    result = batch([made], ObjectiveConfig(kind="sdpo", route="by_success"))
    assert [(s.distil_weight, s.policy_weight) for s in result.samples] == [(0, 1), (0, 1), (1, 0)]


def test_reference_aggregation_counts_rollouts_without_a_signal_as_zero():
    made = group(("a", True, ""), ("b", False, "line 1"), ("c", False, ""), ("d", False, "", "grader_error"))
    assert [s.distil_weight for s in batch([made]).samples] == [1.0, 1.0]  # the success is the others' demonstration
    scaled = batch([made], ObjectiveConfig(kind="sdpo", aggregation="reference")).samples
    assert [s.distil_weight for s in scaled] == pytest.approx([2 / 3, 2 / 3])


LONG = "HEAD " + "reverse the list " * 60 + "TAIL"


def budget_for(made, **teacher):
    """The length of the teacher prompt as it is when nothing is cut."""
    return batch([made], **teacher).samples[-1].teacher_span[0]


def test_feedback_is_cut_first_and_says_so():
    made = group((LONG, True, ""), ("bad", False, LONG))
    both = {"feedback_only_without_demonstration": False}
    full = budget_for(made, **both)
    sample = batch([made], max_context_tokens=full - 40, **both).samples[-1]
    text = prompt_of(sample)
    assert sample.teacher_span[0] <= full - 40
    assert text.count(LONG) == 1
    assert text.index(LONG) < text.index("characters cut")
    assert text.count("HEAD") == text.count("TAIL") == 2
    assert QUESTION in text


def test_demonstration_is_cut_when_feedback_cannot_shrink_further():
    made = group((LONG, True, ""), ("bad", False, LONG))
    both = {"feedback_only_without_demonstration": False}
    limit = budget_for(made, **both) // 2
    result = batch([made], max_context_tokens=limit, **both)
    text = prompt_of(result.samples[-1])
    assert result.samples[-1].teacher_span[0] <= limit
    assert text.count("characters cut") == 2
    assert text.count("HEAD") == text.count("TAIL") == 2
    context = result.contexts[("p", 1)]
    assert context.demonstration.text in context.messages[-1]["content"]
    assert context.feedback in context.messages[-1]["content"]


def test_question_that_does_not_fit_is_skipped_as_too_long():
    assert reasons(batch([group(("bad", False, LONG))], max_context_tokens=30)) == {0: "too_long"}


def test_prompt_and_answer_stay_within_the_context_length():
    made = group(("x = sort.order(x)\n" * 10, False, LONG))
    longest = batch([made]).samples[0].teacher_ids.size
    sample = batch([made], length=longest - 30).samples[0]
    assert sample.teacher_ids.size <= longest - 30
    assert reasons(batch([made], length=20)) == {0: "too_long"}


def test_too_long_context_leaves_hybrid_its_policy_half():
    made = group(("good", True, ""), ("bad", False, LONG))
    result = batch([made], HYBRID, max_context_tokens=30)
    assert [(s.distil_weight, s.policy_weight) for s in result.samples] == [(0.0, 0.5), (0.0, 0.5)]
    assert result.contexts == {}


@settings(max_examples=40, deadline=None)
@given(st.integers(60, 700), st.text(st.characters(codec=None), max_size=1_500))
def test_budget_is_kept_or_the_rollout_skipped_for_any_feedback(limit, said):
    result = batch([group(("bad", False, said))], max_context_tokens=limit)
    for sample in result.samples:
        assert sample.teacher_span[0] <= limit
        assert QUESTION in prompt_of(sample)
    assert len(result.samples) + len(result.skips) == 1


def test_equal_contexts_are_rendered_once(monkeypatch):
    made = group(("good", True, ""), *[("bad", False, "boom")] * 6)
    calls = []
    render = chat("tiny").render
    monkeypatch.setattr(chat("tiny"), "render", lambda messages, **more: calls.append(1) or render(messages, **more))
    assert len(batch([made]).samples) == 6
    assert len(calls) == 1
