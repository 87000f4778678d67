"""Coaching episodes of several turns, and the folder that coaching leaves: its card, its place among runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from coaching_sessions import COACH, LOGPS, TEXT, TOLD, closed, opened, rows, taught, tiny_chat, typed, weights
from command import sdpo
from hypothesis import given, settings
from hypothesis import strategies as st
from sdpo_cli.commands import coach_session
from small_runs import settings as run_settings

from sdpo_mlx.models.resolve import resolve
from sdpo_mlx.rl.components import build_components
from sdpo_mlx.runs.export.hub import plan_upload
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.status import state_of
from sdpo_mlx.teacher import history
from sdpo_mlx.training.coaching import Coaching
from sdpo_mlx.training.lessons import HumanFeedback, Lesson, lesson_from
from sdpo_mlx.types import Exchange, Problem, Rollout


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- episodes


GAME = ("coach", "tiny", "--task", "game:library", "--plain", "--max-tokens", "48")


def test_episodes_are_played_coached_and_made_again_to_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "line 1: AttributeError: x = sort.stable(x): module 'sort' has no attribute 'stable'.\n/good\n"
    code, out, err = typed(monkeypatch, said, *GAME, "--problems", "2", "--json", "--out", "a")
    assert code == 0
    assert [json.loads(out)[name] for name in ("lessons", "remarks", "good", "steps")] == [2, 1, 1, 2]
    assert "environment:" in err
    assert "graded by the environment:" in err
    answer = rows("a")[0]["answers"][0]
    assert [list(turn) for turn in answer["earlier"]] == [["answer", "reply", "finish", "seed", "ids", "logps"]]
    assert answer["earlier"][0]["reply"] in err.replace("\n  ", "\n")
    code, out, _ = sdpo("coach", "tiny", "--replay", "a/coaching.jsonl", "--out", "b", "--plain", "--json")
    assert (code, json.loads(out)["steps"]) == (0, 2)
    assert weights("b") == weights("a")
    code, _, err = typed(monkeypatch, "it is wrong\n", "coach", "b", "--plain", "--again", "--problems", "1")
    assert code == 0
    assert "lesson 3" in err
    assert "with the same seed now:" in err


def test_one_remark_teaches_every_turn_and_the_models_tokens_alone() -> None:
    coaching = opened("game", task={"name": "game:library"}, rollout={"group_size": 1, "max_tokens": 48})
    problem = coaching.components.task.problems("train")[0]
    group = coaching.sample_episodes(problem)
    assert group is not None
    rollout = group.rollouts[0]
    assert len(rollout.turns) == 2
    learned = coaching.learn(Lesson(problem, group.rollouts, (TOLD,), group.last_decides))
    closed(coaching)
    assert learned.update is not None
    assert learned.update.tokens == sum(turn.ids_T.size for turn in rollout.turns)
    again = coaching.sample_episodes(problem, [rollout.turns[0].seed])
    assert again is not None
    assert again.rollouts[0].turns[0].seed == rollout.turns[0].seed


def test_an_environment_that_fails_is_told_and_the_person_still_asked(capsys: pytest.CaptureFixture[str]) -> None:
    coaching = opened("broken", task={"name": "game:library"}, rollout={"group_size": 1, "max_tokens": 48})

    def broken(_problem: Problem, _answers: Any) -> str:
        raise ValueError("no such \x1b[31mworld")

    coaching.components.task.reply = broken  # type: ignore[attr-defined]
    found = coach_session.sample(coaching, coaching.components.task.problems("train")[0], plays=True)
    assert len(found.rollouts) == 1
    assert coach_session._grade(found.feedback[0]) == "the environment failed: ValueError: no such world"
    closed(coaching)
    assert "\x1b" not in capsys.readouterr().err


TURNS = st.lists(st.tuples(TEXT, TEXT, LOGPS), min_size=1, max_size=3)


@settings(max_examples=30, deadline=None)
@given(turns=TURNS, decides=st.booleans())
def test_an_episode_comes_back_from_its_row_with_every_prompt(turns: Any, decides: bool) -> None:
    problem, earlier, last = Problem("p", ({"role": "user", "content": "f"},)), tuple[Exchange, ...](), None
    for seed, (text, reply, logps) in enumerate(turns):
        prompt = tiny_chat().render((*problem.messages, *history(earlier)))
        ids = np.arange(len(logps), dtype=np.int32)
        last = Rollout(prompt, ids, np.array(logps, np.float32), "stop", seed, text)
        earlier = (*earlier, Exchange(last, reply))
    assert last is not None
    rollout = replace(last, earlier=earlier[:-1])
    row = json.loads(
        json.dumps(Lesson(problem, (rollout,), (HumanFeedback("no"),), decides).row(tiny_chat().tokenizer_hash))
    )
    back = lesson_from(row, "f:1", tiny_chat(), 512)
    assert back.last_decides == decides
    assert back.rollouts[0].answers == rollout.answers
    assert [e.reply for e in back.rollouts[0].earlier] == [e.reply for e in rollout.earlier]
    for mine, theirs in zip(back.rollouts[0].turns, rollout.turns, strict=True):
        assert (mine.seed, mine.logps_T.tobytes()) == (theirs.seed, theirs.logps_T.tobytes())
        np.testing.assert_array_equal(mine.prompt_ids, theirs.prompt_ids)


# ---- the folder and its card


def test_the_card_of_a_coached_folder_tells_what_was_said_and_no_place(tmp_path: Path) -> None:
    folder = tmp_path / "with a person"
    setup = build_components(run_settings(**{**COACH, "task": {"name": "tiny"}}))
    coaching = Coaching(setup, RunFolder.open(folder), origin="first")
    taught(coaching, TOLD, HumanFeedback(good=True), HumanFeedback())
    closed(coaching)
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert front == {
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "tags": ["mlx", "lora", "sdpo", "reinforcement-learning"],
    }
    assert "3 lessons with 1 comments and 1 rollouts marked as good" in text
    assert "from the adapter of `first`" in text
    assert "sdpo coach first --replay coaching.jsonl" in text
    assert str(tmp_path) not in text
    assert str(resolve("tiny").path) not in text
    assert plan_upload(folder, "me/x").files == ("adapters.safetensors", "adapter_config.json", "README.md")
    again = Coaching(build_components(setup.requested), RunFolder.open(folder), itself=True)
    taught(again, TOLD)
    closed(again)
    assert "4 lessons with 2 comments and 1 rollouts" in (folder / "README.md").read_text()
    assert "adapter of `first`" in (folder / "README.md").read_text()


def test_a_coached_folder_stands_among_runs_with_its_lessons() -> None:
    coaching = opened("runs/coached")
    taught(coaching, TOLD, TOLD)
    closed(coaching)
    found = state_of(Path("runs/coached"))
    assert (found.state, found.step, found.steps) == ("coached", 2, 2)
    code, _, err = sdpo("watch", "runs/coached", "--once", "--plain")
    assert code == 0
    assert "step 2/2" in err
    code, out, _ = sdpo("runs")
    assert "coached" in out
    assert "/15" not in out
