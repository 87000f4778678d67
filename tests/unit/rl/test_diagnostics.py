"""The self-teacher's own answers: its weights, its context, graded as the student's; and nothing moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_policies import bytes_of, stir
from small_runs import Watcher, events, last_state, settings, trained

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.rl.diagnostics import choose, teacher_success, teacher_weights
from sdpo_mlx.rl.distillation import distillation_batch
from sdpo_mlx.rl.rollouts import sample
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.types import DistillSample, Feedback, RolloutGroup

pytestmark = pytest.mark.long

ROOM = {"problems_per_step": 4, "group_size": 4, "max_tokens": 24}
GREEDY = SamplingParams(24, 0.0, 1.0, frozenset())


@pytest.fixture(scope="module")
def setup() -> Components:
    found = build_components(settings(rollout=ROOM))
    stir(found.policy, scale=0.05)
    return found


@pytest.fixture(scope="module")
def chosen(setup: Components) -> list[tuple[RolloutGroup, DistillSample]]:
    """Four problems with a context each."""
    sampling = replace(GREEDY, temperature=1.0, eos_ids=setup.chat.eos_ids)
    problems = setup.task.problems("train")[:4]
    seeds = [[10 * at + n for n in range(4)] for at in range(4)]
    groups = sample(setup.policy, setup.task, setup.chat, problems, sampling, seeds).groups
    cfg, length = setup.cfg, setup.policy.info.context_length
    batch = distillation_batch(groups, setup.chat, cfg.teacher, cfg.objective, context_length=length, seed=1)
    return choose(groups, batch.samples, setup.task, room=length, count=4)


def test_teacher_answers_from_its_context_and_student_from_its_prompt(setup: Components, chosen: Any) -> None:
    heard: list[tuple[str, str]] = []

    class Graded(Task):
        def grade(self, problem: Any, text: str, *, truncated: bool = False) -> Feedback:
            heard.append((problem.id, text))
            right = len(heard) > len(chosen)  # the student's come first
            return Feedback(float(right), right, "", "pass" if right else "wrong")

    greedy = replace(GREEDY, eos_ids=setup.chat.eos_ids)
    found = teacher_success(setup.policy, Graded(), setup.chat, chosen, greedy, seed=1)  # type: ignore[arg-type]
    expected, state = [], setup.policy.state()
    for role in ("student", "teacher"):
        setup.policy.load_student(state[role])
        for group, each in chosen:
            prompt = getattr(each, f"{role}_ids")[: getattr(each, f"{role}_span")[0]]
            _, _, made = next(iter(setup.policy.generate([prompt], greedy, [[0]])))
            expected.append((group.problem.id, setup.chat.decode(made.ids_T)))
    setup.policy.load_student(state["student"])
    assert sorted(heard[:4]) == sorted(expected[:4])
    assert sorted(heard[4:]) == sorted(expected[4:])
    assert found == {"teacher/success": 1.0, "teacher/student": 0.0, "teacher/answers": len(chosen)}


def test_an_answer_that_could_not_be_graded_counts_for_neither(setup: Components, chosen: Any) -> None:
    first = chosen[0][0].problem.id

    class Graded(Task):
        def grade(self, problem: Any, text: str, *, truncated: bool = False) -> Feedback:
            if problem.id == first:
                raise RuntimeError("no")
            return Feedback(0.0, False, "", "wrong")

    found = teacher_success(setup.policy, Graded(), setup.chat, chosen, GREEDY, seed=1)  # type: ignore[arg-type]
    assert found == {"teacher/success": 0.0, "teacher/student": 0.0, "teacher/answers": 3}


def test_nothing_moves_whatever_happens(setup: Components, chosen: Any) -> None:
    before = bytes_of(setup.policy)
    teacher_success(setup.policy, setup.task, setup.chat, chosen, GREEDY, seed=1)
    assert bytes_of(setup.policy) == before
    with pytest.raises(KeyboardInterrupt):
        teacher_success(setup.policy, setup.task, setup.chat, chosen, GREEDY, seed=1, interrupted=lambda: True)
    assert bytes_of(setup.policy) == before
    with pytest.raises(RuntimeError), teacher_weights(setup.policy):
        raise RuntimeError("in the middle")
    assert bytes_of(setup.policy) == before


def test_one_answer_a_problem_is_chosen_first_where_the_context_leaves_room(setup: Components, chosen: Any) -> None:
    groups = [group for group, _ in chosen]
    samples = [each for _, each in chosen]
    shortest = min(each.teacher_span[0] for each in samples)
    assert choose(groups, [*samples, *samples], setup.task, 10_000, 3) == chosen[:3]
    assert choose(groups, [*samples, *samples], setup.task, 10_000, 6) == [*chosen, *chosen[:2]]
    assert all(each.teacher_span[0] == shortest for _, each in choose(groups, samples, setup.task, shortest, 8))
    assert choose(groups, [replace(each, distil_weight=0.0) for each in samples], setup.task, 10_000, 8) == []


def test_episodes_of_several_turns_are_left_out(chosen: Any) -> None:
    class Game:
        max_turns = 2

    groups, samples = zip(*chosen, strict=True)
    assert choose(groups, samples, Game(), 10_000, 8) == []  # type: ignore[arg-type]


def test_a_run_says_it_at_its_first_step_and_as_often_as_it_scores(tmp_path: Path) -> None:
    train, eval_tokens = {"steps": 4, "eval_every": 2, "save_every": 4}, {"problems": 1, "max_tokens": 4}
    trained(tmp_path / "run", settings(rollout=ROOM, train=train, eval=eval_tokens, log={"teacher_answers": 8}))
    steps = events(tmp_path / "run", "step")
    assert [event["step"] for event in steps if "teacher/success" in event] == [1, 3]
    # The base follows a solution that it is shown nearly always, and alone hardly ever finds one.
    assert steps[0]["teacher/success"] > steps[0]["teacher/student"]


def test_asking_the_teacher_changes_nothing_in_training(tmp_path: Path) -> None:
    train = {"steps": 2, "eval_every": 1, "save_every": 2}
    rollout, eval_tokens = {"problems_per_step": 2, "group_size": 2}, {"problems": 1, "max_tokens": 4}
    for name, count in (("asked", 8), ("unasked", 0)):
        log = {"teacher_answers": count}
        trained(tmp_path / name, settings(rollout=rollout, train=train, eval=eval_tokens, log=log))
    assert all("teacher/success" in event for event in events(tmp_path / "asked", "step"))
    assert last_state(tmp_path / "asked") == last_state(tmp_path / "unasked")
    assert not any("teacher/success" in event for event in events(tmp_path / "unasked", "step"))


def test_a_trust_region_has_no_weights_to_write_with(tmp_path: Path) -> None:
    train, rollout = {"steps": 1, "eval_every": 1, "save_every": 1}, {"group_size": 2}
    cfg = settings(train=train, rollout=rollout, teacher={"kind": "trust_region"})
    watcher = Watcher()
    trained(tmp_path / "run", cfg, watcher)
    assert [event["type"] for event in watcher.events].count("step") == 1
    assert not any("teacher/success" in event for event in watcher.events)
