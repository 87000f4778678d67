"""What all integration tests share: forgetting is measured on little, since each finished run measures it twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from few_prompts import FEW


@pytest.fixture(scope="module", autouse=True)
def few_general_prompts() -> Iterator[None]:
    """Two short prompts and one sentence; test_forgetting.py has all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdpo_mlx.evaluation.forgetting._general", lambda: FEW)
        yield
