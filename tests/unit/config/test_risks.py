"""Warnings of settings with published failures."""

from __future__ import annotations

from typing import Any

import pytest

from sdpo_mlx.config import Config, risks


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"task": {"name": "math"}, "model": {"thinking": True}}, "2603.24472"),
        ({"task": {"name": "math:word"}, "objective": {"kind": "sdpo"}}, "SDPO 26"),
        ({"train": {"steps": 200, "eval_every": 0}}, "rollback"),
        ({"train": {"steps": 500, "on_decline": "warn"}}, "rollback"),
        ({"model": {"adapter": {"kind": "full"}}}, "all weights"),
        ({}, None),
        ({"task": {"name": "math"}}, None),
        ({"task": {"name": "math"}, "model": {"thinking": True}, "objective": {"kind": "grpo"}}, None),
        ({"train": {"steps": 500}}, None),
        ({"train": {"steps": 199, "eval_every": 0}}, None),
        ({"train": {"steps": 500, "eval_every": 0}, "objective": {"kind": "grpo"}}, None),
        ({"model": {"adapter": {"kind": "full"}}, "train": {"learning_rate": 1e-5}}, None),
    ],
)
def test_settings_with_a_published_failure_are_named_once(settings: dict[str, Any], word: str | None) -> None:
    found = risks.warnings(Config.model_validate(settings))
    assert len(found) == (word is not None)
    assert all(str(word) in line for line in found)
