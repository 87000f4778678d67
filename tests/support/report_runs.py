"""Made-up run data for report tests."""

from __future__ import annotations

import json
import re
from typing import Any

from sdpo_mlx.runs.report.collect import RunData


def shown(text: str) -> list[dict[str, Any]]:
    block = re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert block is not None
    rows: list[dict[str, Any]] = json.loads(block[1])
    return rows


def story(rows: list[dict[str, Any]], **config: Any) -> RunData:
    """A run with these rollouts and nothing else."""
    outcomes = [{"problem": r["problem"], "step": r["step"], "success": r["success"], "kind": "wrong"} for r in rows]
    return RunData("made", [], [], [], config, {}, rows, outcomes, [])


def answered(step: int, tokens: int, piece: str, **more: Any) -> dict[str, Any]:
    likely = [[[piece, 0.5]] * 3] * tokens
    return {
        **{"problem": "p", "step": step, "index": 0, "success": False, "pieces": [piece] * tokens},
        **{"divergence": [-1.5] * tokens, "candidates": {"student": likely, "teacher": likely}, **more},
    }
