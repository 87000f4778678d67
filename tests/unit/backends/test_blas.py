"""The BLAS that MLX's Linux wheel multiplies with: found, or quietly done without."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest

blas = pytest.importorskip("sdpo_mlx.backends.mlx.blas")


@pytest.fixture(autouse=True)
def _fresh_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MKL_CBWR", "MKL_THREADING_LAYER", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "before")


def test_reference_is_said_quietly_when_nothing_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(blas, "SYSTEM_LIBRARIES", ("libthat-nobody-has.so.9",))
    assert blas.load_blas.__wrapped__() == "reference"
    assert capfd.readouterr() == ("", "")


def test_nothing_is_loaded_off_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda library, mode: loaded.append(library))
    assert blas.load_blas.__wrapped__() == "system"
    assert loaded == []


def test_own_library_comes_before_the_systems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "lib" / "libmkl_rt.so.2"
    own.parent.mkdir()
    own.touch()
    loaded: list[tuple[str, int]] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(ctypes, "CDLL", lambda library, mode: loaded.append((library, mode)))
    assert blas.load_blas.__wrapped__() == own.name
    assert loaded == [(str(own), ctypes.RTLD_GLOBAL)]


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_asleep_unless_the_user_chose(
    given: str | None, used: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(blas, "SYSTEM_LIBRARIES", ())
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    blas.load_blas.__wrapped__()
    assert os.environ["OMP_WAIT_POLICY"] == used


def test_damaged_library_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "lib" / "libmkl_rt.so.2"
    broken.parent.mkdir()
    broken.write_bytes(b"no library")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(blas, "SYSTEM_LIBRARIES", ())
    assert blas.load_blas.__wrapped__() == "reference"
