"""The embedded task: its splits, its grader, and what its feedback gives away."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.tasks.tiny.library import (
    FEEDBACK_MODES,
    LIBRARY,
    MAX_CHARACTERS,
    MAX_LINES,
    OPERATIONS,
    PRIOR,
    apply,
    judge,
    prior,
    solution,
)
from sdpo_mlx.tasks.tiny.task import TinyTask, draw_inputs
from sdpo_mlx.types import Feedback, Problem

TASK = TinyTask()
PROBLEMS = TASK.problems("train")
ALL_NAMES = [(op.module, name) for op in OPERATIONS.values() for name in op.names]
SOME_LINE = st.sampled_from([*(f"x = {m}.{n}(x)" for m, n in ALL_NAMES), "x = nothing.here(x)", "x = sort", ""])


def first_wrong(problem: Problem) -> str:
    """The right answer but for its first name."""
    module = problem.private["operations"][0]
    wrong = next(name for name in OPERATIONS[module].names if name != LIBRARY[module])
    return solution(problem.private["operations"], {**LIBRARY, module: wrong})


def operations_of(problems) -> list[tuple[str, ...]]:
    return [tuple(p.private["operations"]) for p in problems]


@pytest.mark.parametrize(
    ("variant", "lengths"),
    [("", {2: (72, 44), 3: (48, 20)}), ("mid", {4: (60, 20), 5: (60, 20)}), ("hard", {5: (12, 12), 6: (12, 12)})],
)
def test_splits_have_the_documented_sizes(variant, lengths):
    task = TinyTask(variant)
    for at, split in enumerate(("train", "held_out")):
        counts = [len(ops) for ops in operations_of(task.problems(split))]
        assert {n: counts.count(n) for n in set(counts)} == {n: sizes[at] for n, sizes in lengths.items()}


def test_no_problem_is_in_two_places_except_hard_in_both_of_its_splits():
    groups = [operations_of(TinyTask(v).problems(s)) for v in ("", "mid") for s in ("train", "held_out")]
    groups.append(operations_of(TinyTask("hard").problems("train")))
    flat = [ops for group in groups for ops in group]
    assert len(flat) == len(set(flat)) == 120 + 64 + 120 + 40 + 24
    assert TinyTask("hard").problems("train") == TinyTask("hard").problems("held_out")


@pytest.mark.parametrize(("variant", "low", "high"), [("mid", 0.003, 0.04), ("hard", 0.0002, 0.002)])
def test_chance_of_an_untaught_model_lies_in_the_bounds_of_the_variant(variant, low, high):
    problems = [*TinyTask(variant).problems("train"), *TinyTask(variant).problems("held_out")]
    assert all(low <= prior(p.private["operations"]) <= high for p in problems)


def test_problems_are_the_same_on_every_construction():
    again = TinyTask()
    assert again.problems("train") == PROBLEMS
    assert [p.private for p in again.problems("train")] == [p.private for p in PROBLEMS]
    assert len({p.id for p in PROBLEMS}) == len(PROBLEMS)


def test_training_covers_every_module():
    assert {module for ops in operations_of(PROBLEMS) for module in ops} == set(OPERATIONS)


def test_the_prompt_names_the_operations_and_no_function():
    for problem in PROBLEMS:
        (message,) = problem.messages
        assert message == {"role": "user", "content": f"Write f(x): {', '.join(problem.private['operations'])}"}


@pytest.mark.parametrize("variant", ["", "mid", "hard"])
def test_the_straightforward_answer_passes_without_any_feedback_text(variant):
    task = TinyTask(variant)
    for problem in (*task.problems("train"), *task.problems("held_out")):
        answer = solution(problem.private["operations"])
        assert task.grade(problem, answer) == Feedback(1.0, True, "", "pass")
        assert task.grade(problem, f"\n{answer}\n\n").success


@pytest.mark.parametrize("module", list(OPERATIONS))
def test_only_one_of_the_four_names_exists(module):
    verdicts = [judge([module], [(3, -1, 2, 2)], f"x = {module}.{name}(x)") for name in OPERATIONS[module].names]
    assert [v.success for v in verdicts].count(True) == 1
    assert all(v.kind == "error" and v.text for v in verdicts if not v.success)


@pytest.mark.parametrize(
    ("module", "returned"),
    [
        ("sort", [-1, 2, 2, 3]),
        ("reverse", [2, 2, -1, 3]),
        ("dedupe", [3, -1, 2]),
        ("behead", [-1, 2, 2]),
        ("curtail", [3, -1, 2]),
        ("double", [6, -2, 4, 4]),
        ("negate", [-3, 1, -2, -2]),
        ("square", [9, 1, 4, 4]),
        ("bump", [4, 0, 3, 3]),
        ("evens", [2, 2]),
        ("rotate", [-1, 2, 2, 3]),
        ("cumsum", [3, 2, 4, 6]),
    ],
)
def test_operations_do_what_they_say_on_an_example(module, returned):
    assert apply([module], [3, -1, 2, 2]) == returned
    assert apply([module], []) == []


def test_full_feedback_reports_every_line_and_suggests():
    text = "x = sort.quick(x)\nx = rotate.roll(x)"
    verdict = judge(["sort", "rotate"], [(3, 1, 2)], text)
    assert verdict.text == (
        "line 1: ok: x = sort.quick(x)\n"
        "line 2: AttributeError: x = rotate.roll(x): module 'rotate' has no attribute 'roll'. "
        "Did you mean: rotate.shift?"
    )
    assert (verdict.reward, verdict.success, verdict.kind) == (0.0, False, "error")


def test_without_suggestion_no_missing_name_is_given_away():
    task = TinyTask(feedback="no_suggestion")
    for problem in PROBLEMS:
        text = task.grade(problem, first_wrong(problem)).text
        module = problem.private["operations"][0]
        assert "has no attribute" in text
        assert "Did you mean" not in text
        assert f"{module}.{LIBRARY[module]}" not in text


def test_first_error_reports_one_line_only():
    task = TinyTask(feedback="first_error")
    text = task.grade(PROBLEMS[0], f"{first_wrong(PROBLEMS[0])}\nx = sort.arrange(x)").text
    assert len(text.splitlines()) == 1
    assert text.startswith("line 1: AttributeError")


def test_mode_none_says_nothing_but_keeps_the_kind():
    silent = TinyTask(feedback="none")
    for answer in (first_wrong(PROBLEMS[0]), "", "nonsense", solution(["sort"])):
        loud = TASK.grade(PROBLEMS[0], answer)
        assert silent.grade(PROBLEMS[0], answer) == Feedback(0.0, False, "", loud.kind)


def test_right_names_in_a_wrong_chain_show_a_counterexample():
    verdict = judge(["sort", "behead"], [(3, 1, 2)], solution(["behead", "sort"]))
    assert verdict.kind == "wrong"
    assert verdict.text.splitlines()[-1] == "f([3, 1, 2]) returned [1, 2], expected [2, 3]"


def test_a_different_chain_with_the_same_results_passes():
    assert judge(["double"], [(1, 2)], "x = negate.opposite(x)\nx = double.twice(x)\nx = negate.opposite(x)").success


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("", "invalid", "empty"),
        (" \n\t\n", "invalid", "empty"),
        ("import os", "invalid", "SyntaxError"),
        ("x = sort.quick(y)", "invalid", "SyntaxError"),
        ("x = sort.quick(x); x = 1", "invalid", "SyntaxError"),
        ("x = shuffle.quick(x)", "error", "NameError"),
        ("x = sort.quick(x)\n" * (MAX_LINES + 1), "invalid", "too long"),
        ("a" * (MAX_CHARACTERS + 1), "invalid", "too long"),
        ("[" * 10_000_000, "invalid", "too long"),
        ("\0\ud800\x1b[2J", "invalid", "SyntaxError"),
        (solution(["square"] * MAX_LINES), "wrong", "OverflowError"),
    ],
)
def test_unusable_answers_are_told_why(text, kind, expected):
    verdict = TASK.grade(PROBLEMS[0], text)
    assert (verdict.kind, verdict.success) == (kind, False)
    assert expected in verdict.text
    verdict.text.encode()
    assert len(verdict.text) < 2_000


def test_a_truncated_answer_fails_even_when_what_is_there_is_right():
    problem = PROBLEMS[0]
    verdict = TASK.grade(problem, solution(problem.private["operations"]), truncated=True)
    assert (verdict.kind, verdict.success) == ("invalid", False)
    assert "cut off" in verdict.text


def test_unknown_variant_and_mode_name_the_choices():
    with pytest.raises(ConfigError, match="tiny:hard"):
        TinyTask("huge")
    with pytest.raises(ConfigError, match="no_suggestion"):
        TinyTask(feedback="loud")
    assert TinyTask().feedback == TinyTask.feedback_modes[0] == FEEDBACK_MODES[0]


def test_every_operation_of_every_problem_matters():
    for variant in ("", "mid", "hard"):
        task = TinyTask(variant)
        for problem in task.problems("train"):
            ops = problem.private["operations"]
            for at in range(len(ops)):
                assert not task.grade(problem, solution(ops[:at] + ops[at + 1 :])).success


def test_the_prior_is_a_distribution_over_different_names():
    assert sum(PRIOR) == pytest.approx(1)
    assert all(len(set(op.names)) == 4 for op in OPERATIONS.values())


@given(text=st.text(st.characters(codec=None), max_size=200), mode=st.sampled_from(FEEDBACK_MODES))
def test_arbitrary_text_never_raises_and_never_passes(text, mode):
    verdict = TinyTask(feedback=mode).grade(PROBLEMS[0], text)
    assert not verdict.success
    assert bool(verdict.text) == (mode != "none")
    verdict.text.encode()


@given(lines=st.lists(SOME_LINE, max_size=8), mode=st.sampled_from(FEEDBACK_MODES))
def test_a_success_is_an_answer_that_computes_the_right_lists(lines, mode):
    problem = PROBLEMS[1]
    verdict = TinyTask(feedback=mode).grade(problem, "\n".join(lines))
    calls = [line.removeprefix("x = ").removesuffix("(x)").split(".") for line in lines if line]
    known = bool(calls) and all(len(c) == 2 and LIBRARY.get(c[0]) == c[1] for c in calls)
    expected = known and computes(problem, [c[0] for c in calls])
    assert verdict.success == expected


def computes(problem: Problem, modules: list[str]) -> bool:
    """Whether a chain gives the expected lists, overflow counted as no."""
    private = problem.private
    try:
        return all(apply(modules, x) == apply(private["operations"], x) for x in private["inputs"])
    except OverflowError:
        return False


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=7), st.permutations(list(OPERATIONS)))
def test_a_counterexample_is_true(numbers, modules):
    asked, answered = modules[:3], modules[3:6]
    text = judge(asked, [numbers], solution(answered)).text
    if not text:
        assert apply(asked, numbers) == apply(answered, numbers)
        return
    given_part, rest = text.splitlines()[-1].removeprefix("f(").split(") returned ")
    returned, expected = rest.split(", expected ")
    assert ast.literal_eval(given_part) == numbers
    assert ast.literal_eval(returned) == apply(answered, numbers)
    assert ast.literal_eval(expected) == apply(asked, numbers)


def test_drawn_inputs_repeat_a_number_so_that_dedupe_shows():
    import numpy as np

    for numbers in draw_inputs(np.random.default_rng(0)):
        assert 5 <= len(numbers) <= 7
        assert len(set(numbers)) < len(numbers)
