"""Every loss with every teacher: the cases on which backends and the float64 oracle are compared."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import pytest
from pairwise import pairwise

AGGREGATIONS = ("token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "reference")
TEACHERS = ("ema", "frozen", "live", "trust_region")
SUPPORTS: list[dict[str, Any]] = [
    *(
        {"alpha": alpha, **support}
        for alpha, support in product(
            (0.0, 0.5, 1.0),
            (
                {"support": "full"},
                {"support": "top_k", "top_k": 7, "tail": True},
                {"support": "top_k", "top_k": 7, "tail": False},
            ),
        )
    ),
    {"alpha": 1.0, "support": "sampled"},
    {"alpha": 1.0, "support": "sequence"},
]
# Every loss meets every teacher and every kind; the whole product is in the slow suite. The aggregations take turns.
_DEFAULT = pairwise(("sdpo", "hybrid"), range(len(SUPPORTS)), TEACHERS)
CASES = [
    pytest.param(
        {"kind": kind, **support, "aggregation": aggregation},
        teacher,
        id=f"{kind}-{number}-{teacher}",
        marks=() if kind == "grpo" or (kind, number, teacher) in _DEFAULT else pytest.mark.slow,
    )
    for (kind, (number, support), teacher), aggregation in zip(
        [*product(("sdpo", "hybrid"), enumerate(SUPPORTS), TEACHERS), *product(("grpo",), [(0, {})], TEACHERS)],
        cycle(AGGREGATIONS),
        strict=False,
    )
]
