"""Held-out scores: equal seeds give equal answers, nothing ungraded is left out, every name is there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from small_runs import settings

from sdpo_mlx.evaluation.evaluate import Evaluation, ProblemScore, evaluate
from sdpo_mlx.evaluation.spec import EvalSpec, eval_spec, held_out, sampling_params, training_spec
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.types import Feedback

SETTINGS = settings(eval={"problems": 4, "samples": 3})


@cache
def setup() -> Components:
    return build_components(SETTINGS)


def score(task: Any = None, seed: int = 0, purpose: str = "eval", **changes: Any) -> Evaluation:
    parts, cfg = setup(), SETTINGS.eval.model_copy(update=changes)
    sampling = sampling_params(cfg, SETTINGS.rollout, parts.chat)
    problems = held_out(parts.task, cfg)
    task = task or parts.task
    return evaluate(parts.policy, task, parts.chat, EvalSpec(problems, sampling, cfg.samples, seed, purpose))


def test_a_run_evaluates_at_most_128_problems_evenly_spaced_unless_told() -> None:
    parts = setup()
    many = [replace(held_out(parts.task, SETTINGS.eval)[0], id=str(n)) for n in range(1000)]
    task = SimpleNamespace(problems=lambda _split: many)
    cfg = parts.cfg.model_copy(update={"eval": SETTINGS.eval.model_copy(update={"problems": None})})
    chosen = [int(each.id) for each in training_spec(replace(parts, task=task, cfg=cfg), "eval").problems]
    assert (len(chosen), chosen[0], chosen[-1]) == (128, 0, 992)
    assert {b - a for a, b in itertools.pairwise(chosen)} == {7, 8}
    assert len(eval_spec(replace(parts, task=task, cfg=cfg)).problems) == 1000
    assert len(training_spec(replace(parts, task=task), "eval").problems) == SETTINGS.eval.problems


class Judged(Task):
    """The embedded task with another judge, which also keeps the answers."""

    def __init__(self, judge: Callable[[str, str], Feedback]) -> None:
        self.judge, self.answers = judge, []

    def grade(self, problem: Any, text: str, *, truncated: bool = False) -> Feedback:
        self.answers.append((problem.id, text))
        return self.judge(problem.id, text)


def answers(**options: Any) -> list[tuple[str, str]]:
    task = Judged(lambda *_: Feedback(0.0, False, "", "wrong"))
    score(task, **options)
    return sorted(task.answers)


def test_equal_seeds_give_equal_answers_and_others_others() -> None:
    first = answers()
    assert len(first) == 12
    assert answers() == first
    assert answers(seed=1) != first
    assert answers(purpose="final") != first


def test_an_answer_does_not_depend_on_the_problems_beside_it() -> None:
    few = answers(problems=2)
    assert len(few) == 6
    assert set(few) <= set(answers(problems=4))


def test_greedy_answers_are_all_the_same() -> None:
    found = answers(temperature=0.0)
    assert len(set(found)) == 4


def test_answers_that_could_not_be_graded_count_as_failures() -> None:
    def judge(name: str, text: str) -> Feedback:
        if name == first:
            raise RuntimeError("broken")
        return Feedback(1.0, True, "", "pass")

    first = held_out(setup().task, SETTINGS.eval)[0].id
    found = score(Judged(judge))
    assert found.score == pytest.approx(3 / 4)
    assert [p.successes for p in found.problems if p.id == first] == [(False,) * 3]
    assert found.event()["n"] == 4


def test_a_prompt_that_does_not_fit_counts_as_a_failure() -> None:
    task: Any = Judged(lambda *_: Feedback(1.0, True, "", "pass"))
    parts = setup()
    problems = list(held_out(parts.task, SETTINGS.eval))
    problems[1] = replace(problems[1], messages=({"role": "user", "content": "x, " * 5_000},))
    sampling = sampling_params(SETTINGS.eval, SETTINGS.rollout, parts.chat)
    found = evaluate(parts.policy, task, parts.chat, EvalSpec(problems, sampling, 2, 0))
    assert [p.rewards for p in found.problems] == [(1.0, 1.0), (0.0, 0.0), (1.0, 1.0), (1.0, 1.0)]


def made(*successes: tuple[bool, ...]) -> Evaluation:
    scores = (ProblemScore(str(i), "", tuple(map(float, each)), each) for i, each in enumerate(successes))
    return Evaluation("held_out", len(successes[0]), tuple(scores), 0)


def test_the_event_has_every_name() -> None:
    event = made((True, False, False, False), (True, True, True, True)).event()
    assert set(event) == {"split", "score", "pass@1", "pass@4", "avg@4", "n", "low", "high"}
    assert (event["split"], event["n"]) == ("held_out", 2)
    assert (event["score"], event["avg@4"], event["pass@1"], event["pass@4"]) == (0.625, 0.625, 0.625, 1.0)
    assert event["low"] <= event["score"] <= event["high"]


def test_pass_at_k_is_unbiased() -> None:
    found = made((True, False, False, False))
    assert found.pass_at(2) == pytest.approx(1 - 3 / 6)
    assert math.isnan(found.pass_at(5))


def test_eval_settings_reach_the_sampling() -> None:
    cfg = SETTINGS.eval.model_copy(update={"temperature": 0.3, "top_p": 0.9, "max_tokens": 7})
    found = sampling_params(cfg, SETTINGS.rollout, setup().chat)
    assert (found.temperature, found.top_p, found.max_tokens) == (0.3, 0.9, 7)
    assert sampling_params(SETTINGS.eval, SETTINGS.rollout, setup().chat).max_tokens == 24
    assert found.eos_ids == setup().chat.eos_ids


def test_one_answer_a_problem_has_no_pass_at_k_beside_it() -> None:
    assert set(made((True,), (False,)).event()) == {"split", "score", "pass@1", "avg@1", "n", "low", "high"}
