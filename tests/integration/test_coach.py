"""Coaching: a person's line makes the step, everything is kept, and the file alone makes it again, byte for byte."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coaching_sessions import COACH, LOGPS, TEXT, TOLD, closed, opened, rows, taught, tiny_chat, typed, weights
from command import sdpo
from hypothesis import given, settings
from hypothesis import strategies as st
from sdpo_cli.commands import coach, coach_session
from small_runs import events, last_state, trained
from small_runs import settings as run_settings

from sdpo_mlx.core.errors import ConfigError, DataError
from sdpo_mlx.core.text import display
from sdpo_mlx.rl.components import build_components
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.training import coaching as module
from sdpo_mlx.training.coaching import Coaching
from sdpo_mlx.training.lessons import HumanFeedback, Lesson, lesson_from, read_lessons
from sdpo_mlx.types import Problem, Rollout

WORDS = ("coach", "tiny", "--task", "tiny", "--plain", "--max-tokens", "24")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- the steps


def test_a_session_goes_on_where_it_was_and_can_be_made_again_from_its_file(tmp_path: Path) -> None:
    whole = opened("whole")
    taught(whole, TOLD, HumanFeedback(), TOLD)
    closed(whole)
    half = opened("half")
    taught(half, TOLD, HumanFeedback())
    closed(half)
    rest = opened("half")
    assert rest.step == 2
    taught(rest, TOLD)
    closed(rest)
    again = opened("again")
    lessons = read_lessons(Path("whole/coaching.jsonl"), again.components.chat, again.components.policy.info.vocab_size)
    assert len(list(again.replay(lessons))) == 3
    assert list(again.replay(lessons)) == []  # all made already
    with pytest.raises(DataError, match="other lessons"):
        list(again.replay(lessons[1:]))
    closed(again)
    for folder in ("half", "again"):
        assert last_state(tmp_path / folder) == last_state(tmp_path / "whole")
        assert weights(folder) == weights("whole")
        assert events(tmp_path / folder) == events(tmp_path / "whole")


def test_a_lesson_that_a_kill_left_unlearned_is_learned_when_the_folder_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = opened("straight")
    taught(straight, TOLD)
    closed(straight)
    killed = opened("killed")
    with monkeypatch.context() as patched:
        patched.setattr(module, "learn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            taught(killed, TOLD)
    closed(killed)
    with (tmp_path / "killed" / "coaching.jsonl").open("a") as file:
        file.write('{"type": "lesson", "st')  # torn
    mended = opened("killed")
    assert (mended.step, mended.caught_up) == (1, 1)
    closed(mended)
    assert last_state(tmp_path / "killed") == last_state(tmp_path / "straight")


def test_nothing_said_changes_no_byte_and_a_good_answer_teaches_itself() -> None:
    coaching = opened("quiet", teacher={"own_success": True, "all_correct": True})
    before = weights("quiet")
    taught(coaching, HumanFeedback())
    assert weights("quiet") == before
    taught(coaching, HumanFeedback(good=True))
    closed(coaching)
    assert weights("quiet") != before
    assert coaching.step == 2
    assert [row["answers"][0]["success"] for row in rows("quiet")] == [False, True]


def test_coaching_lets_words_and_marks_count_whatever_the_model_has_learned_from() -> None:
    trained_with = ["objective.kind=grpo", "teacher.feedback=false", "train.schedule=linear"]
    cfg = coach.settings("tiny", [], {"task.name": "tiny"})
    assert (cfg.objective.kind, cfg.teacher.own_success, cfg.rollout.group_size) == ("sdpo", True, 1)
    assert cfg.train.learning_rate == pytest.approx(0.4 * 5e-3)
    assert coach.settings("tiny", ["train.learning_rate=0.1"], {}).train.learning_rate == 0.1
    told = coach.settings("tiny", trained_with, {"task.name": "tiny"})
    assert (told.objective.kind, told.teacher.feedback, told.train.schedule) == ("grpo", False, "linear")


def test_a_good_answer_teaches_its_sibling_and_silence_beside_it_nothing() -> None:
    coaching = opened("pair", rollout={"group_size": 3, "max_tokens": 24})
    problem = coaching.components.task.problems("train")[0]
    rollouts = coaching.sample(problem)
    learned = coaching.learn(
        Lesson(problem, rollouts, (HumanFeedback(good=True), HumanFeedback("This is wrong."), HumanFeedback()))
    )
    closed(coaching)
    assert learned.update is not None
    assert learned.update.applied
    assert learned.update.tokens == rollouts[1].ids_T.size


def test_a_coached_run_is_its_own_first_teacher(tmp_path: Path) -> None:
    trained(tmp_path / "run", run_settings(train={"steps": 1, "eval_every": 0}))
    setup = build_components(run_settings(**COACH))
    setup.policy.load_student(RunFolder("run").load_adapter()[0])
    coaching = Coaching(setup, RunFolder.open("coached"))
    state = setup.policy.state()
    assert all(np.array_equal(array, state["teacher"][name]) for name, array in state["student"].items())
    closed(coaching)


def test_another_folder_or_start_or_settings_are_refused(tmp_path: Path) -> None:
    closed(opened("mine"))
    with pytest.raises(ConfigError, match="learning_rate"):
        opened("mine", train={"learning_rate": 1e-4})
    setup = build_components(run_settings(**COACH))
    state = setup.policy.state()
    setup.policy.load_student({name: array + 1 for name, array in state["student"].items()})
    with pytest.raises(ConfigError, match="start was"):
        Coaching(setup, RunFolder("mine"))
    trained(tmp_path / "run", run_settings(train={"steps": 1, "eval_every": 0}))
    with pytest.raises(ConfigError, match="contains a training run"):
        Coaching(setup, RunFolder("run"))


# ---- rows


@settings(max_examples=40, deadline=None)
@given(text=TEXT, said=TEXT, good=st.booleans(), logps=LOGPS, asked=st.text("abc {}\\", min_size=1, max_size=20))
def test_a_lesson_comes_back_from_its_row_whole(text: str, said: str, good: bool, logps: Any, asked: str) -> None:
    message = {"role": "user", "content": f"f {asked}"}
    problem = Problem("p", (message,))  # type: ignore[arg-type]
    ids = np.arange(len(logps), dtype=np.int32)
    prompt = tiny_chat().render(problem.messages)
    rollout = Rollout(prompt, ids, np.array(logps, np.float32), "stop", 7, text)
    lesson = Lesson(problem, (rollout,), (HumanFeedback(said, good),))
    row = json.loads(json.dumps(lesson.row(tiny_chat().tokenizer_hash)))
    back = lesson_from(row, "f:1", tiny_chat(), 512)
    assert back.problem.messages == problem.messages
    assert np.array_equal(back.rollouts[0].ids_T, ids)
    assert back.rollouts[0].logps_T.tobytes() == rollout.logps_T.tobytes()
    assert np.array_equal(back.rollouts[0].prompt_ids, prompt)
    assert (back.rollouts[0].text, back.rollouts[0].finish, back.rollouts[0].seed) == (text, "stop", 7)
    assert back.feedback[0].good == good


ANSWER = {"answer": "x", "feedback": "no", "success": False, "finish": "stop", "seed": 1, "ids": [1], "logps": [-1.0]}
ROW = {"problem": "p", "messages": [{"role": "user", "content": "f"}], "answers": [ANSWER]}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"tokenizer": "other"}, "another tokenizer"),
    ({"messages": []}, "messages is not a list of messages"),
    ({"answers": {}}, "answers is not a list"),
    ({"answers": [3]}, "not an object"),
    ({"answers": [{**ANSWER, "ids": [1, 2]}]}, "one per id"),
    ({"answers": [{**ANSWER, "ids": [10**9]}]}, "not tokens"),
    ({"answers": [{**ANSWER, "ids": [True]}]}, "not tokens"),
    ({"answers": [{**ANSWER, "logps": [None]}]}, "not log-probs"),
    ({"answers": [{**ANSWER, "logps": [0.5]}]}, "not log-probs"),
    ({"answers": [{**ANSWER, "feedback": 3}]}, "feedback of an answer"),
    ({"answers": [{**ANSWER, "finish": "end"}]}, "finish"),
    ({"last_decides": 1}, "last_decides"),
    ({"answers": [{**ANSWER, "earlier": {}}]}, "earlier"),
    ({"answers": [{**ANSWER, "earlier": [ANSWER]}]}, "reply of an answer"),
    ({"answers": [{**ANSWER, "earlier": [{**ANSWER, "reply": "", "ids": [10**9]}]}]}, "not tokens"),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_a_bad_row_is_named_with_its_line(change: dict[str, Any], said: str) -> None:
    good = {**ROW, "tokenizer": tiny_chat().tokenizer_hash}
    Path("rows.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps({**good, **change})}\n")
    with pytest.raises(DataError, match=said) as caught:
        read_lessons(Path("rows.jsonl"), tiny_chat(), 512)
    assert "rows.jsonl:2" in caught.value.line()


# ---- the command


def test_a_scripted_session_saves_lessons_and_adapter_and_replays_to_equal_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = 'line 1: no\n\n/good\n/god\n"line 1: ok\\nline 2: no"\n'
    code, out, err = typed(monkeypatch, said, *WORDS, "--learning-rate", "1e-3", "--json", "--out", "a")
    assert code == 0
    told = json.loads(out)
    assert [told[name] for name in ("lessons", "remarks", "good", "steps", "total")] == [4, 2, 1, 3, 4]
    assert "unknown command /god" in err
    assert told["next"][-1] == "sdpo coach tiny --replay a/coaching.jsonl --out DIR"
    assert [row["answers"][0]["feedback"] for row in rows("a")] == ["line 1: no", "", "", "line 1: ok\nline 2: no"]
    code, out, _ = sdpo("coach", "tiny", "--replay", "a/coaching.jsonl", "--out", "b", "--plain", "--json")
    assert (code, json.loads(out)["steps"]) == (0, 3)
    assert weights("b") == weights("a")
    code, out, err = typed(monkeypatch, "it is wrong\n", "coach", "a", "--plain", "--again", "--problems", "1")
    assert code == 0
    assert "lesson 5" in err
    assert "with the same seed now:" in err
    assert "total lessons 5" in out
    assert "--replay" not in out  # from here they would be other steps
    assert weights("a") != weights("b")


def test_prompts_can_be_given_or_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("coach", "tiny", "--plain", "--max-tokens", "24", "--json")
    code, out, _ = typed(
        monkeypatch, "no\nno\nno\n", *words, "--prompt", "f(x): sort", "--prompt", "g(x)", "--out", "a"
    )
    assert (code, json.loads(out)["lessons"]) == (0, 2)
    assert [row["messages"][0]["content"] for row in rows("a")] == ["f(x): sort", "g(x)"]
    code, out, err = typed(monkeypatch, "f(x): sort\nno\n/quit\nnever read\n", *words)
    assert (code, json.loads(out)["run"]) == (0, "runs/tiny-coach")
    assert "prompt:" in err
    assert [row["messages"][0]["content"] for row in rows("runs/tiny-coach")] == ["f(x): sort"]
    assert coach.source_of("runs/tiny-coach", False, None) == "typed"


def test_an_interrupt_ends_with_130_and_every_lesson_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["no\n"])

    class Person(io.StringIO):
        def readline(self, _size: int | None = -1) -> str:
            for line in lines:
                return line
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Person())
    code, out, err = sdpo(*WORDS, "--out", "a", "--json")
    assert code == 130
    assert "every lesson is saved" in err
    assert (json.loads(out)["total"], len(rows("a"))) == (1, 1)


def test_a_hostile_answer_is_inert_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    coach_session.show_text("\x1b[31mred\x1b[0m \x07[bold]x[/bold]\n\u202egnal\nwhat is wrong? ")
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert said == "".join(f"  {line}\n" for line in display("red [bold]x[/bold]\ngnal\nwhat is wrong?").split("\n"))
