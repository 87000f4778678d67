"""What of a run's answers a report shows: never more than has room, every turn, and nothing that says too much."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import settings as pace
from hypothesis import strategies as st
from report_runs import answered, shown, story

from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.report.collect import read_run
from sdpo_mlx.runs.report.html import page
from sdpo_mlx.runs.report.tables import problems
from sdpo_mlx.runs.report.tokens import section


@given(
    tokens=st.integers(1, 600),
    piece=st.sampled_from(["a", "<<<<", "日本語", "\n"]),
    steps=st.integers(1, 9),
    room=st.integers(0, 60_000),
)
@pace(max_examples=25, deadline=None)
def test_tokens_never_take_more_than_their_room(tokens: int, piece: str, steps: int, room: int) -> None:
    rows = [answered(step, tokens, piece) for step in range(steps)]
    text = section(story(rows), 0, room)
    block = re.search(r'<script type="application/json">(.*)</script>', text, re.DOTALL)
    assert len(block[1]) <= room + 2 if block else "No rollout fits" in text
    for found in json.loads(block[1]) if block else []:
        assert len(found["pieces"]) + found["cut"] == tokens
        assert len(found["d"]) == len(found["pieces"])
        assert found["top"] is None or len(found["top"]) == tokens


def test_both_ends_of_a_run_are_shown_where_not_all_has_room() -> None:
    rows = [answered(step, 100, "word") for step in range(1, 41)]
    steps = [each["step"] for each in shown(section(story(rows), 0, 60_000))]
    assert {1, 40} <= set(steps)
    assert len(steps) < 40
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 2 * 40 / len(steps) + 1


def test_a_page_of_several_large_runs_stays_under_its_limit() -> None:
    large = story([answered(step, 400, "<" * 20) for step in range(12)])
    assert len(section(large, 0, 10**7)) > 3_000_000
    assert len(page([large, large]).encode()) < 5_000_000


def test_each_turn_of_an_episode_has_its_own_tokens(tmp_path: Path) -> None:
    run_folder = RunFolder(tmp_path / "run")
    run_folder.rollouts.mkdir(parents=True)
    run_folder.events.write_text("")
    first = {**answered(0, 2, "a"), "reply": "try again"}
    last = {**answered(0, 3, "b"), "feedback": "good", "teacher": [{"role": r, "content": r} for r in ("u", "a", "u")]}
    del last["candidates"]
    kept = ("pieces", "divergence", "candidates", "reply")
    run_folder.write_rollouts(1, [{**last, "earlier": [{name: first[name] for name in kept}]}])
    turns = shown(page([read_run(run_folder.path)]))
    told = [(t["turn"], t["turns"], len(t["pieces"]), t["feedback"], len(t["teacher"])) for t in turns]
    assert told == [(1, 2, 2, "try again", 1), (2, 2, 3, "good", 3)]
    assert [bool(turn["top"]) for turn in turns] == [True, False]


def test_progress_of_a_problem_compares_steps_not_answers_of_one() -> None:
    rows = [answered(step, 1, "a", problem="twice", success=step == 5) for step in (2, 2, 5, 5)]
    rows.append(answered(3, 1, "a", problem="once", success=True))
    found = {each[0]: each[3:] for each in problems(story(rows))[2]}
    assert found == {"twice": ("0/2 (step 2)", "2/2 (step 5)", "2"), "once": ("1/1 (step 3)", "-", "1")}


def test_a_run_without_a_teacher_says_so_and_draws_no_divergence() -> None:
    steps = [{"step": 1, "divergence/mean": 0.0, "success/rate": 0.5, "generations/total": 8}]
    alone = replace(story([answered(1, 1, "a")], objective={"kind": "grpo"}), steps=steps)
    text = page([alone])
    assert "had no self-teacher" in text
    assert "Divergence of" not in text
    assert "Divergence of" in page([replace(alone, config={})])
