"""Scripted coaching sessions on the embedded model."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from command import sdpo
from hypothesis import strategies as st
from small_runs import settings as run_settings

from sdpo_mlx.models.chat_template import Chat, load_chat
from sdpo_mlx.models.resolve import resolve
from sdpo_mlx.rl.components import build_components
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.training.coaching import Coaching
from sdpo_mlx.training.lessons import HumanFeedback, Lesson

COACH = {"log": {"samples": 0}, "objective": {"support": "full"}, "rollout": {"group_size": 1, "max_tokens": 24}}
TOLD = HumanFeedback("line 2: AttributeError: x = rotate.roll(x): module 'rotate' has no attribute 'roll'.")


@cache
def tiny_chat() -> Chat:
    """The chat template of the embedded model; importing this module must load no tokenizer."""
    return load_chat(resolve("tiny").path)


def typed(monkeypatch: pytest.MonkeyPatch, said: str, *words: str) -> tuple[int, str, str]:
    """A session with these lines on stdin: exit code, stdout, stderr."""
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    return sdpo(*words)


def opened(folder: str, **sections: Mapping[str, Any]) -> Coaching:
    setup = build_components(run_settings(**{**COACH, **sections}))
    return Coaching(setup, RunFolder.open(folder))


def closed(coaching: Coaching) -> None:
    coaching.close()
    coaching.folder.close()


def taught(coaching: Coaching, *remarks: HumanFeedback) -> None:
    problems = coaching.components.task.problems("train")
    for remark in remarks:
        problem = problems[coaching.step]
        rollouts = coaching.sample(problem)
        coaching.learn(Lesson(problem, rollouts, (remark,) * len(rollouts)))


def rows(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "coaching.jsonl").read_text().splitlines()]


def weights(folder: str | Path) -> bytes:
    return (Path(folder) / "adapters.safetensors").read_bytes()


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
LOGPS = st.lists(st.floats(-30, 0, width=32), min_size=1, max_size=5)
