"""Packages that mlx-lm and transformers import without need wait until somebody reads something of them."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from sdpo_mlx.models.tokenizer import deferred

NAME = "costly_package_of_a_test"


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that leaves this file when it is imported."""
    mark = tmp_path / "imported"
    (tmp_path / f"{NAME}.py").write_text(f"open({str(mark)!r}, 'x').close()\nvalue = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    return mark


def test_package_is_imported_when_first_read(imported: Path) -> None:
    with deferred(NAME):
        early = importlib.import_module(NAME)
        assert find_spec(NAME) is not None
    assert not imported.exists()
    assert NAME not in sys.modules
    assert early.value == 3
    assert imported.exists()
    assert sys.modules.pop(NAME) is not early


def test_package_is_left_alone_when_already_imported(imported: Path) -> None:
    real = importlib.import_module(NAME)
    with deferred(NAME):
        assert importlib.import_module(NAME) is real
    assert sys.modules.pop(NAME) is real


def test_missing_package_stays_missing() -> None:
    with deferred(NAME), pytest.raises(ImportError):
        importlib.import_module(NAME)
