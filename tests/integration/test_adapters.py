"""The task adapters in `examples/` with the real packages, if they are installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from paths import EXAMPLES
from small_runs import settings, trained

from sdpo_mlx.config import TaskConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.tasks.check import check_task
from sdpo_mlx.tasks.custom.load import CustomTask, open_file
from sdpo_mlx.tasks.grading import grade

TASKSET = """
import verifiers.v1 as vf

class Data(vf.TaskData):
    answer: str

class Task(vf.Task[Data]):
    @vf.reward(weight=3.0)
    async def right_word(self, trace: vf.Trace) -> float:
        return float(trace.last_reply == self.data.answer)

    @vf.reward(weight=1.0)
    async def brief(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply) < 10)

class Config(vf.TasksetConfig):
    pass

class BackwardsTaskset(vf.Taskset[Task, Config]):
    def load(self):
        number = 0
        while True:
            number += 1
            yield Task(Data(prompt=f"Write {number} backwards.", answer=str(number)[::-1]), self.config.task)

__all__ = ["BackwardsTaskset"]
"""


def opened(name: str) -> CustomTask:
    return open_file(TaskConfig(name=f"{EXAMPLES}/{name}"))


@pytest.fixture
def gym() -> CustomTask:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed: pip install reasoning-gym")
    return opened("reasoning_gym_task.py:leg_counting")


@pytest.fixture
def taskset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CustomTask:
    pytest.importorskip("verifiers.v1", reason="verifiers is not installed: pip install verifiers")
    (tmp_path / "backwards_words.py").write_text(TASKSET, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("backwards_words", None)
    return opened("verifiers_task.py:backwards_words")


def test_reasoning_gym_scores_answers_and_quotes_what_it_read(gym: CustomTask) -> None:
    for problem in gym.problems("held_out")[:5]:
        right = gym.solution(problem)
        assert grade(gym, problem, f"Let me count.\n{right}").success
        wrong = grade(gym, problem, "<answer>-1 legs</answer>")
        assert (wrong.reward, wrong.success, wrong.text) == (0.0, False, "The answer '-1 legs' is not right.")
        assert "No answer was found" in grade(gym, problem, "forty-two").text
        assert json.dumps(problem.private["entry"]["answer"]) not in wrong.text


def test_reasoning_gym_shares_no_question_between_its_splits(gym: CustomTask) -> None:
    train, held_out = ({p.messages[0]["content"] for p in gym.problems(split)} for split in ("train", "held_out"))
    assert len(train) > 300
    assert len(held_out) > 70
    assert not train & held_out


def test_reasoning_gym_names_an_unknown_dataset() -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed: pip install reasoning-gym")
    with pytest.raises(ConfigError, match="nothing_like_it"):
        opened("reasoning_gym_task.py:nothing_like_it")


def test_verifiers_rewards_are_weighted_and_named(taskset: CustomTask) -> None:
    problem = next(p for p in taskset.problems("train") if "12 backwards" in p.messages[0]["content"])
    assert grade(taskset, problem, "21").success
    part = grade(taskset, problem, "12")
    assert (part.reward, part.success, part.text) == (0.25, False, "right word: 0.00 of 1")
    assert grade(taskset, problem, "a long answer").text == "brief: 0.00 of 1\nright word: 0.00 of 1"


def test_verifiers_taskset_is_limited_if_infinite(taskset: CustomTask) -> None:
    assert len(taskset.problems("train")) + len(taskset.problems("held_out")) == 1_000


@pytest.mark.parametrize("name", ["gym", "taskset"])
def test_adapter_passes_the_task_check_and_trains_a_step(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    task: CustomTask = request.getfixturevalue(name)
    assert [each for each in check_task(task).oddities if each.level == "fault"] == []
    cfg = settings(task={"name": task.name}, train={"steps": 1})
    state = trained(tmp_path / "run", cfg)
    assert state is not None
    assert state.step == 1
