"""`task.tests: half`: a split by tests, not by problems, as in the SDPO authors' `data/split_tests.py`.

Every problem is trained on with a random half of its tests, all of which give feedback and decide the reward, and
evaluated with all of them. The half is drawn once for each problem, from its id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sdpo_mlx.core.seeding import rng
from sdpo_mlx.types import Problem

HELD_OUT = "-held-out"  # behind the id of a problem that is evaluated with more tests than it is trained with


def with_half_tests(problems: Sequence[Problem]) -> list[Problem]:
    """Return each problem twice, for training and for evaluation; pairs of the authors' own tables stay as they are."""
    ids, made = {problem.id for problem in problems}, list[Problem]()
    for problem in problems:
        tests = problem.private["tests"]
        if problem.id.removesuffix(HELD_OUT) in ids - {problem.id}:
            made.append(_put(problem, "held_out", tests))
        elif f"{problem.id}{HELD_OUT}" in ids:
            made.append(_put(problem, "train", tests))
        else:
            count = max(1, len(tests) // 2)
            chosen = sorted(rng("half-tests", problem.id).choice(len(tests), size=count, replace=False))
            made.append(_put(problem, "train", [tests[index] for index in chosen]))
            made.append(_put(replace(problem, id=f"{problem.id}{HELD_OUT}"), "held_out", tests))
    return made


def _put(problem: Problem, split: str, tests: Sequence[dict[str, Any]]) -> Problem:
    if split == "train":
        tests = [{**test, "public": True} for test in tests]
    return replace(problem, private={**problem.private, "split": split, "tests": tuple(tests)})
