"""Real runs that are made to fail: what they warn of, and when."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import events, settings, trained

from sdpo_mlx.config.resolve import resolve


def found(folder: Path) -> dict[str, int]:
    """Rule and step of each warning of a health rule."""
    return {event["rule"]: event["step"] for event in events(folder, "warning") if "rule" in event}


def test_answers_cut_off_are_named_and_a_teacher_that_cannot_answer_either(tmp_path: Path) -> None:
    rollout = {"problems_per_step": 8, "group_size": 4, "max_tokens": 3}
    train = {"steps": 6, "eval_every": 3, "learning_rate": 1e-4, "probe": False}
    trained(tmp_path, settings(rollout=rollout, train=train, log={"samples": 0, "teacher_answers": 16}))
    assert found(tmp_path) == {"truncated": 3, "teacher": 4}
    truncated = next(event for event in events(tmp_path, "warning") if event.get("rule") == "truncated")
    assert truncated["evidence"] == {"now": 1.0}
    assert "steps 1 to 3" in truncated["message"]


@pytest.mark.slow
def test_ten_times_the_learning_rate_is_warned_of_within_two_evaluations(tmp_path: Path) -> None:
    changed = ["model.name=tiny", "task.name=tiny", "train.learning_rate=0.05", "train.steps=6", "train.patience=0"]
    trained(tmp_path, resolve(None, changed, {}).config)
    assert found(tmp_path) == {"held_out": 3, "length": 6, "truncated": 6}
