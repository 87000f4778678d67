"""Probes of the embedded model: useful contexts, contexts of other problems, a task without feedback; nothing moves."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from small_policies import bytes_of
from small_runs import Watcher, events, last_state, settings, trained

from sdpo_mlx.config import TeacherConfig
from sdpo_mlx.evaluation.probe import KINDS, Prober, choose_problems, contexts, in_other_templates, probe, probe_groups
from sdpo_mlx.evaluation.probe_verdict import judge
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.rl.rollouts import rollout_seeds, sample
from sdpo_mlx.runs.report.collect import read_run
from sdpo_mlx.runs.report.tables import notes
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.training import session
from sdpo_mlx.types import Feedback, RolloutGroup

pytestmark = pytest.mark.long
ROLLOUTS = 2
CFG = settings(rollout={"max_tokens": 24})


@cache
def setup() -> Components:
    return build_components(CFG)


@cache
def attempts() -> tuple[RolloutGroup, ...]:
    parts, problems = setup(), choose_problems(setup().task, 16, 0)
    seeds = rollout_seeds("attempt", 0, 0, problems, 4)
    return sample(parts.policy, parts.task, parts.chat, problems, parts.sampling, seeds).groups


def without_feedback(groups: tuple[RolloutGroup, ...]) -> tuple[RolloutGroup, ...]:
    return tuple(replace(g, feedback=tuple(replace(f, text="") for f in g.feedback)) for g in groups)


def swapped(groups: tuple[RolloutGroup, ...]) -> tuple[RolloutGroup, ...]:
    """Each problem with the rollouts and feedback of one that shares no operation with it, if there is one."""
    operations = {group.problem.id: set(group.problem.private["operations"]) for group in groups}
    pairs = [
        (group, next((o for o in groups if not operations[o.problem.id] & operations[group.problem.id]), None))
        for group in groups
    ]
    return tuple(replace(other, problem=group.problem) for group, other in pairs if other is not None)


@cache
def found(kind: str) -> Any:
    changed = {"own": attempts(), "swapped": swapped(attempts()), "silent": without_feedback(attempts())}[kind]
    return probe_groups(setup(), changed, ROLLOUTS)


def test_useful_feedback_learns_and_contexts_of_other_problems_do_not() -> None:
    own, others = judge(found("own"), CFG), judge(found("swapped"), CFG)
    assert own.kind == "learns"
    assert own.best is not None
    assert own.best.success > 0.8 > own.best.student
    assert own.best.shift.right > own.best.shift.wrong
    assert len(found("swapped").student) > 12
    assert others.kind == "does not learn"
    assert others.settings == {"objective.kind": "grpo"}


def test_gains_of_problems_are_signed_by_what_their_context_shows() -> None:
    own, other = found("own").results[0], found("swapped").results[0]
    assert set(own.signs) == {"demonstration", "feedback"}
    assert sum(map(len, own.signs.values())) == len(own.with_context)
    assert min(sign for signs in own.signs.values() for sign in signs) >= 0
    assert sum(own.signs["feedback"]) > len(own.signs["feedback"]) / 2
    assert sum(map(sum, other.signs.values())) < sum(map(sum, own.signs.values()))


def test_equal_seeds_give_an_equal_probe_and_others_another() -> None:
    first, again = (probe_groups(setup(), attempts()[:4], ROLLOUTS) for _ in range(2))
    assert again == first
    other = replace(setup(), cfg=settings(rollout={"max_tokens": 24}, train={"seed": 1}))
    assert probe_groups(other, attempts()[:4], ROLLOUTS).student != first.student


def test_without_feedback_no_context_of_feedback_is_kept() -> None:
    run = Prober(setup(), ROLLOUTS)
    run.begin(without_feedback(attempts())[:6])
    for context in contexts(CFG.teacher, [group.problem for group in run.groups]):
        run.try_context(context)
    kept = [result.context.name for result in run.results]
    solved = any(feedback.success for group in run.groups for feedback in group.feedback)
    assert kept == (["demonstration_or_feedback", "reference"] if solved else ["reference"])
    assert set(run.left_out) == {f"{name} (paper)" for name in KINDS} - {f"{name} (paper)" for name in kept}
    assert run.left_out["feedback (paper)"] == "no rollout got feedback"


def test_without_feedback_success_and_reference_there_is_no_context() -> None:
    failed = tuple(
        replace(
            g,
            feedback=tuple(Feedback(0.0, False, "", "wrong") for _ in g.feedback),
            problem=replace(g.problem, reference=None),
        )
        for g in attempts()
    )
    result = probe_groups(setup(), failed, ROLLOUTS)
    assert result.results == ()
    assert contexts(CFG.teacher, [group.problem for group in failed])[-1].name != "reference"


def test_self_teacher_answers_are_graded_as_answers_to_the_problem_itself() -> None:
    questions: set[str] = set()

    class Recording(Task):
        def grade(self, problem: Any, text: str, *, truncated: bool = False) -> Feedback:
            questions.add(problem.messages[-1]["content"])
            raise RuntimeError("no grade")

    groups = attempts()[:2]
    result = probe_groups(replace(setup(), task=Recording()), groups, ROLLOUTS)
    assert questions == {group.problem.messages[-1]["content"] for group in groups}
    assert result.student == {group.problem.id: [] for group in groups}  # rollouts without a grade do not count
    assert result.results[0].pairs == ()
    assert judge(result, CFG).kind == "undecided"


def test_nothing_moves_in_the_policy_whatever_happens() -> None:
    before = bytes_of(setup().policy)
    probe_groups(setup(), attempts()[:2], 1)
    with pytest.raises(KeyboardInterrupt):
        probe_groups(setup(), attempts()[:2], 1, interrupted=lambda: True)
    assert bytes_of(setup().policy) == before


def test_whole_probe_tries_each_kind_then_the_other_templates_of_the_best() -> None:
    result = probe(setup(), choose_problems(setup().task, 3, 0), 1)
    tried = [(each.context.name, each.context.template) for each in result.results]
    best = next(name for name, template in tried if template != "paper")
    assert [template for name, template in tried if template != "paper"] == ["reference", "facts", "requirements"]
    assert len({name for name, template in tried if template != "paper"}) == 1
    assert (best, "paper") in tried
    assert all(name in KINDS for name, _ in tried)


def test_own_template_is_tried_beside_the_named_ones() -> None:
    (first, *_) = contexts(TeacherConfig(template="{problem} {feedback}"), [])
    assert first.template == "custom"
    assert [each.template for each in in_other_templates(first)] == ["paper", "reference", "facts", "requirements"]


# ---- before the first step of a run


def run(folder: Path, probes: bool = True, stop_after: int = 0, **sections: Any) -> list[dict[str, Any]]:
    """The events of a run of one step; `stop_after` interrupts it after so many probes."""
    rollout = {"problems_per_step": 8, "group_size": 2, "max_tokens": 24}
    train = {"steps": 1, "save_every": 1, "eval_every": 0, "probe": probes}
    watcher = Watcher("probe", stop_after)
    trained(folder, settings(**{"rollout": rollout, "train": train, "eval": {"problems": 1}, **sections}), watcher)
    return watcher.events


def test_a_run_probes_once_and_nothing_else_of_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PROBE_ROLLOUTS", 1)
    first = run(tmp_path / "resumed", stop_after=1)
    second = run(tmp_path / "resumed")
    run(tmp_path / "plain", probes=False)
    (probed,) = [event for event in first + second if event["type"] == "probe"]
    assert (probed["step"], probed["verdict"]) == (0, "learns")
    assert [event["type"] for event in first][-1] == "probe"  # before the first update
    assert not [event for event in first + second if event["type"] == "warning"]
    assert len(events(tmp_path / "resumed", "probe")) == 1
    assert events(tmp_path / "resumed", "step") == events(tmp_path / "plain", "step")
    assert last_state(tmp_path / "resumed") == last_state(tmp_path / "plain")


def test_a_run_whose_context_does_not_help_warns_once_and_goes_on(tmp_path: Path) -> None:
    # The embedded model was trained on the paper's template and makes nothing of another one.
    seen = run(tmp_path / "run", teacher={"template": "facts"}, log={"samples": 0})
    (warning,) = [event["message"] for event in seen if event["type"] == "warning"]
    (probed,) = [event for event in seen if event["type"] == "probe"]
    assert probed["verdict"] == "does not learn"
    assert f"{100 * probed['teacher/success']:.0f} %" in warning
    assert "\n" not in warning
    assert [event["type"] for event in seen].count("step") == 1
    rows = [what for _, what in notes(read_run(tmp_path / "run"))[2]]
    assert any(row.startswith("probe: does not learn. ") for row in rows)


def test_a_run_without_any_success_has_one_warning_of_it(tmp_path: Path) -> None:
    rollout = {"problems_per_step": 8, "group_size": 8, "max_tokens": 1}
    seen = run(tmp_path / "run", rollout=rollout, log={"samples": 0, "teacher_answers": 16})
    (probed,) = [event for event in seen if event["type"] == "probe"]
    assert (probed["verdict"], probed["success"], probed["teacher/success"]) == ("does not learn", 0.0, 0.0)
    assert [(event["rule"], event["step"]) for event in seen if event["type"] == "warning"] == [("no_success", 1)]


@pytest.mark.parametrize(("template", "share"), [(None, 1.0), ("facts", 0.0)])
def test_first_share_of_auto_is_what_the_probe_found(template: str | None, share: float, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "objective": {"kind": "auto"},
        "teacher": {"template": template, "demonstration": "off"},
        "task": {"name": "tiny:mid"},
        "rollout": {"problems_per_step": 8, "group_size": 2, "max_tokens": 48},
    }
    run(tmp_path / "whole", **sections)
    run(tmp_path / "resumed", stop_after=1, **sections)
    run(tmp_path / "resumed", **sections)
    (step,) = events(tmp_path / "whole", "step")
    assert step["share/feedback"] == share
    assert events(tmp_path / "resumed", "step") == [step]


def test_a_run_without_a_self_teacher_is_not_probed(tmp_path: Path) -> None:
    assert not [e for e in run(tmp_path / "run", objective={"kind": "grpo"}) if e["type"] == "probe"]
