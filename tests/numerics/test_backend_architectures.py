"""One folder of random weights in the published layout, opened by both backends: they say and learn the same."""

from __future__ import annotations

import pytest
from backend_pairs import disagreement, published_pair
from published_models import DIFFERENT, PUBLISHED
from requirements import needs_torch

pytestmark = needs_torch

# Recurrence with attention, shared keys with per-layer inputs, sinks with 4-bit experts, short convolutions.
DEFAULT = ("gemma4", "gpt_oss", "lfm2", "qwen3_5")
ALL = [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.slow) for name in PUBLISHED]
OTHERWISE = [
    pytest.param(name, marks=(pytest.mark.slow, pytest.mark.xfail(reason=reason, strict=True)))
    for name, (_, reason) in DIFFERENT.items()
]


@pytest.mark.parametrize("name", [*ALL, *OTHERWISE])
def test_scores_steps_and_greedy_outputs_of_the_backends_agree(name: str) -> None:
    ours, theirs = published_pair(name)
    found = disagreement(ours, theirs)
    assert found.log_probs <= 2e-5
    assert found.loss <= 1e-5
    assert found.cosine <= 1e-6
    assert found.gradient <= 1e-4
    assert found.greedy == 0


def test_bounds_notice_an_adapter_that_differs_by_a_thousandth() -> None:
    ours, theirs = published_pair("lfm2")
    state = theirs.state()
    theirs.load_student({name: array * 1.001 for name, array in state["student"].items()})
    try:
        found = disagreement(ours, theirs)
    finally:
        theirs.load_state(state)
    assert found.loss > 1e-5
    assert found.gradient > 1e-4
