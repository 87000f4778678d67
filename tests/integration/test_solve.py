"""Test-time SDPO: what a search promises, on the embedded model and its hard problems."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sdpo_cli.main import main as run

from sdpo_mlx.config import Config
from sdpo_mlx.config.resolve import resolve
from sdpo_mlx.core.errors import DataError, StorageError
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.runs.status import state_of
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.tasks.code.formats.detect import problem_from_any
from sdpo_mlx.tasks.code.problem_folder import row_of
from sdpo_mlx.training.discovery import Plan, SearchRecord, attempts_for, curve, measure, read
from sdpo_mlx.training.test_time import WRONG, AttemptBatch, Budget, searcher_of, solve
from sdpo_mlx.types import Feedback, Problem


def settings(**flags: Any) -> Config:
    return resolve(None, [], {"model.name": "tiny", "task.name": "tiny:hard", **flags}).config


@pytest.fixture(scope="module")
def opened() -> Components:
    return build_components(settings())


@pytest.fixture
def setup(opened: Components) -> Any:
    untouched = opened.policy.state()
    yield opened
    opened.policy.load_state(untouched)


@pytest.fixture(scope="module")
def problem(opened: Components) -> Problem:
    return opened.task.problems("train")[1]


def in_fours(setup: Components, **flags: Any) -> Components:
    """The same parts, four attempts at a time instead of eight."""
    return replace(setup, cfg=settings(**{"rollout.group_size": 4, **flags}))


class Mute(Task):
    """The task without its words: pass or fail alone, and nothing ever passes where `hopeless`."""

    name, description, feedback_modes = "mute", "", ("none",)

    def __init__(self, task: Any, *, hopeless: bool = False) -> None:
        self.task, self.hopeless = task, hopeless

    def problems(self, split: Any) -> Any:
        return self.task.problems(split)

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        found = self.task.grade(problem, text, truncated=truncated)
        if self.hopeless:
            return Feedback(0.0, False, "", "wrong")
        return replace(found, text="")


def student(setup: Components) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in setup.policy.state()["student"].items()}


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_a_hard_problem_is_solved_where_as_many_samples_of_the_untouched_model_fail(
    setup: Components, problem: Problem
) -> None:
    untouched, seen = setup.policy.state(), list[AttemptBatch]()
    found = solve(setup, problem, "sdpo", Budget(64), seen.append)
    assert found.solved is not None
    assert found.solved <= found.attempts <= 64
    assert [each.number for tried in seen for each in tried.attempts] == list(range(1, found.attempts + 1))
    assert sum(each.feedback.success for tried in seen[:-1] for each in tried.attempts) == 0
    setup.policy.load_state(untouched)
    others = [each for each in setup.task.problems("train") if each.id != problem.id][:3]
    assert [solve(setup, each, "best-of-k", Budget(found.solved)).solved for each in others] == [None] * 3


def test_a_search_is_the_same_again_with_the_same_seed(setup: Components, problem: Problem) -> None:
    untouched = setup.policy.state()

    def texts(seed: int, method: Any) -> list[str]:
        setup.policy.load_state(untouched)
        seen = list[AttemptBatch]()
        solve(in_fours(setup, **{"train.seed": seed}), problem, method, Budget(6), seen.append)
        return [each.rollout.text for tried in seen for each in tried.attempts]

    for method in ("sdpo", "multi-turn"):
        assert texts(0, method) == texts(0, method)
    assert texts(0, "sdpo") != texts(1, "sdpo")


def test_only_sdpo_moves_the_weights(setup: Components, problem: Problem) -> None:
    before, fours = student(setup), in_fours(setup)
    for method in ("best-of-k", "multi-turn"):
        solve(replace(fours, task=Mute(setup.task, hopeless=True)), problem, method, Budget(5))
        assert same(student(setup), before)
    solve(fours, problem, "sdpo", Budget(5))
    assert not same(student(setup), before)


def test_nothing_is_learned_from_an_environment_without_words(setup: Components, problem: Problem) -> None:
    before, mute = student(setup), replace(in_fours(setup), task=Mute(setup.task, hopeless=True))
    distilled, resampled = list[AttemptBatch](), list[AttemptBatch]()
    solve(mute, problem, "sdpo", Budget(8), distilled.append)
    solve(mute, problem, "best-of-k", Budget(8), resampled.append)
    assert same(student(setup), before)
    assert all(tried.update is None for tried in distilled)
    assert [a.rollout.text for t in distilled for a in t.attempts] == [
        a.rollout.text for t in resampled for a in t.attempts
    ]


def test_a_conversation_holds_what_was_said_and_loses_the_oldest_where_it_gets_too_long(
    setup: Components, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup.policy, "info", replace(setup.policy.info, context_length=400))
    searcher: Any = searcher_of(
        replace(setup, task=Mute(setup.task, hopeless=True)), problem, "multi-turn", lambda: False
    )
    first, second = searcher.next_group(0, 8), searcher.next_group(1, 8)
    shown = setup.chat.reveal(second.rollouts[0].prompt_ids)
    assert len(first.rollouts) == len(second.rollouts) == 1
    assert first.rollouts[0].text in shown
    assert WRONG in shown
    room = setup.policy.info.context_length - setup.cfg.rollout.max_tokens
    sizes = [searcher.next_group(step, 1).rollouts[0].prompt_ids.size for step in range(2, 12)]
    assert max(sizes) <= room
    assert len(searcher.exchanges) < 12
    assert (
        setup.chat.reveal(searcher.next_group(12, 1).rollouts[0].prompt_ids).count(problem.messages[-1]["content"]) == 1
    )


def test_the_budget_ends_a_search_by_attempts_and_by_time(setup: Components, problem: Problem) -> None:
    hopeless = replace(setup, task=Mute(setup.task, hopeless=True))
    found = solve(hopeless, problem, "best-of-k", Budget(11))
    assert (found.solved, found.attempts) == (None, 11)
    found = solve(hopeless, problem, "best-of-k", Budget(10_000, seconds=1e-9))
    assert found.attempts == setup.cfg.rollout.group_size


def test_best_of_k_samples_ahead_where_many_rows_take_as_long_as_few(
    setup: Components, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    fours = replace(in_fours(setup), task=Mute(setup.task, hopeless=True))
    plain, ahead, calls = list[AttemptBatch](), list[AttemptBatch](), list[int]()
    solve(fours, problem, "best-of-k", Budget(10), plain.append)
    generate = fours.policy.generate

    def counted(prompts: Any, sampling: Any, seeds: Any, *rest: Any) -> Any:
        calls.append(sum(map(len, seeds)))
        return generate(prompts, sampling, seeds, *rest)

    monkeypatch.setattr(fours.policy, "generate", counted)
    monkeypatch.setattr(fours.policy, "info", replace(fours.policy.info, together=32))
    progress: list[tuple[int, int]] = []
    found = solve(fours, problem, "best-of-k", Budget(10), ahead.append, on_progress=lambda *at: progress.append(at))
    assert calls == [8, 2]  # two groups of four together, then what is left of the budget
    assert found.attempts == 10
    assert max(done for done, _ in progress) == 10
    rollouts = [
        [attempt.rollout.ids_T.tolist() for batch in all_ for attempt in batch.attempts] for all_ in (plain, ahead)
    ]
    assert rollouts[0] == rollouts[1]


def test_an_interrupted_measurement_goes_on_and_leaves_the_policy_untouched(setup: Components, tmp_path: Path) -> None:
    before, file, setup = student(setup), tmp_path / "searches.jsonl", in_fours(setup, **{"rollout.max_tokens": 12})
    problems = setup.task.problems("train")[:2]
    plan = Plan(problems, ("sdpo", "best-of-k"), (0, 1), Budget(5))
    done = list[SearchRecord]()
    with pytest.raises(KeyboardInterrupt):
        measure(setup, plan, file, done.append, lambda: len(done) >= 3)
    assert same(student(setup), before)
    file.write_text(file.read_text() + '{"method": "sdp')  # killed in the middle of a line
    whole = measure(setup, plan, file)
    assert same(student(setup), before)
    untouched = measure(setup, plan, tmp_path / "at-once.jsonl")
    assert [replace(r, seconds=0.0) for r in whole] == [replace(r, seconds=0.0) for r in untouched]
    assert [r.seconds for r in whole[:3]] == [r.seconds for r in done]
    assert len(read(file)) == 8


def test_damage_within_the_searches_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "searches.jsonl"
    file.write_text("nonsense\n{}\n")
    with pytest.raises(StorageError, match=r"searches\.jsonl:1"):
        read(file)


def test_discovery_counts_first_successes_over_problems_and_seeds() -> None:
    def record(problem: str, seed: int, solved: int | None, attempts: int = 64) -> SearchRecord:
        return SearchRecord("sdpo", problem, seed, solved, solved or attempts, 1.0)

    found = [record("a", 0, 4), record("a", 1, None), record("b", 0, 20), record("b", 1, 1)]
    shares = {k: share for k, share, _ in curve(found, [1, 4, 19, 20, 64])}
    assert shares == {1: 0.25, 4: 0.5, 19: 0.5, 20: 0.75, 64: 0.75}
    assert [attempts_for(found, share) for share in (0.25, 0.5, 0.51, 0.75, 0.9)] == [1, 4, 20, 20, None]
    assert [k for k, _, _ in curve([*found, record("c", 0, None, 8)], [8, 9])] == [8]


def test_a_problem_in_a_folder_is_read_with_its_tests(tmp_path: Path) -> None:
    (tmp_path / "statement.md").write_text("Write add(a, b).")
    (tmp_path / "tests.py").write_text("import math\nassert add(1, 2) == 3\nassert math.isnan(add(math.nan, 1))\n")
    problem = problem_from_any(row_of(tmp_path), str(tmp_path))
    assert problem.private["entry"] == "add"
    assert "import math" in problem.private["preamble"]
    assert [test["public"] for test in problem.private["tests"]] == [True, False]
    (tmp_path / "tests.py").unlink()
    with pytest.raises(DataError, match="no tests"):
        row_of(tmp_path)
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "1.in").write_text("1 2\n")
    with pytest.raises(DataError, match=r"1\.out"):
        row_of(tmp_path)
    (tmp_path / "cases" / "1.out").write_text("3\n")
    assert [test["kind"] for test in problem_from_any(row_of(tmp_path), "").private["tests"]] == ["stdin"]


@pytest.mark.parametrize("text", ["assert add(1", "x = 1\n", "assert 1 == 1\n"])
def test_tests_that_cannot_be_used_are_told_with_their_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "statement.md").write_text("Write add(a, b).")
    (tmp_path / "tests.py").write_text(text)
    with pytest.raises(DataError, match=r"tests\.py"):
        row_of(tmp_path)


def test_the_command_solves_shows_and_keeps(
    tmp_path: Path, problem: Problem, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["solve", "--model", "tiny", "--task", "tiny:hard", "--problem", problem.id]
    assert run([*words, "--keep", str(tmp_path / "kept"), "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)["methods"]["sdpo"]
    assert found["tried"][found["solved"] - 1]["success"]
    assert len(found["tried"]) == found["attempts"]
    assert "  feedback:" in told.err
    assert f"{found['attempts']} of 64 attempts" in told.err
    kept = tmp_path / "kept"
    assert f"attempt {found['solved']} of {found['attempts']} solved it" in (kept / "README.md").read_text()
    state = state_of(kept)
    assert (state.state, state.task, state.generations) == ("finished", "tiny:hard", found["attempts"])
    assert run(["eval", str(kept), "--problems", "1", "--group-size", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == str(kept)
    assert run([*words, "--attempts", "1", "--keep", str(kept)]) == 1  # kept again
    assert state_of(kept).generations == 1
    assert "none of 1 attempts" in (kept / "README.md").read_text()
    (kept / "checkpoints").mkdir()  # as a training run has
    assert run([*words, "--attempts", "1", "--keep", str(kept)]) == 2
    assert "already contains a run" in capsys.readouterr().err
    assert run([*words, "--attempts", "1", "--method", "best-of-k"]) == 1
    assert "not solved in 1 attempts" in capsys.readouterr().out


def test_the_command_measures_all_problems_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["solve", "--model", "tiny", "--task", "tiny:hard", "--every-problem", "--attempts", "2"]
    words += ["--set", "rollout.max_tokens=4"]
    assert run([*words, "--method", "best-of-k", "--out", str(tmp_path / "found"), "--json"]) == 0
    methods = json.loads(capsys.readouterr().out)["methods"]
    assert [point["k"] for point in methods["best-of-k"]["curve"]] == [1, 2]
    assert "<svg" in (tmp_path / "found" / "discovery.svg").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "0"], "not positive"),
        (["--out", "x"], "--out"),
        (["--every-problem", "--keep", "x"], "--keep"),
        (["--keep", "x", "--method", "multi-turn"], "adapter"),
        (["--problem", "nothing-like-it"], "nothing-like-it"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["solve", "--model", "tiny", "--task", "tiny:hard", *words]) == 2
    assert said in capsys.readouterr().err
